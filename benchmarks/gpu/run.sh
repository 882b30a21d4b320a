#!/usr/bin/env bash
# Measure on a GPU machine without a network: sets itself up from the packed folder beside it, then runs every part,
# the most wanted first. Every result is one JSON line in OUT/results.jsonl the moment it is there.
#
#   bash PACKED/run.sh [--out OUT] [--part NAME ...] [--cpu] [--tiny] [--seconds 480] [--work FOLDER] [--list]
#
# PYTHON names the Python that holds torch (python3 without it). A folder that was packed without the checkout is run
# from the checkout's root. Further options go to runner.py (--help lists them).
set -euo pipefail
started=$(date +%s)
packed=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
work=
rest=()
while (($#)); do
  case $1 in
    --work) work=$2; shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done
[[ -f $packed/manifest.json ]] || { echo "$packed holds no manifest.json: make it with benchmarks/gpu/pack.py." >&2; exit 1; }
work=${work:-$(mktemp -d)}
mkdir -p "$work/site" "$work/import" "$work/hosts" "$work/home" "$work/stubs"

if [[ -f $packed/checkout.tar.xz ]]; then
  checkout=$work/import/diffusion_blend
  mkdir -p "$checkout"
  "$python" -I -m tarfile --filter data -e "$packed/checkout.tar.xz" "$checkout"
else
  checkout=$PWD
  [[ -f $checkout/benchmarks/gpu/runner.py ]] || { echo "$checkout is no checkout: run this from its root." >&2; exit 1; }
  ln -sfn "$checkout" "$work/import/diffusion_blend"
fi
for host in "$packed"/hosts/*.tar.xz; do
  folder=$work/hosts/$(basename "$host" .tar.xz)
  mkdir -p "$folder/custom_nodes" "$folder/models" "$folder/input" "$folder/output"
  "$python" -I -m tarfile --filter data -e "$host" "$folder"
done
"$python" -I -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
  --root-user-action=ignore --upgrade --target "$work/site" "$packed"/wheels/*.whl
if [[ -f $packed/kitchen/cuda.tar.xz ]]; then
  "$python" -I -m tarfile --filter data -e "$packed/kitchen/cuda.tar.xz" "$work/site"
fi
"$python" -I -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("av") is None)' ||
  cp "$checkout/benchmarks/gpu/stubs/av.py" "$work/stubs/"
echo "set up in $(($(date +%s) - started)) s" >&2

export HOME=$work/home HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=$work/site:$work/import:$work/stubs
exec "$python" -P "$checkout/benchmarks/gpu/runner.py" --work "$work" --manifest "$packed/manifest.json" \
  --started "$started" ${rest[@]+"${rest[@]}"}
