"""What blending costs in the host: whole sampling runs as ratios to the base run, all in one process.

    python -P benchmarks/sampling.py [--json FILE] [--rounds N] [--kind sd15|sdxl|sd3] [--size N] [--steps N]

The variants take turns (base first in every round, after one warm-up each), so that a machine whose speed drifts slows
all of them; each figure is the median over rounds of that round's ratio to its own base run. ``per call`` divides by the
number of model calls per step, so 1.00 means that the side path costs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import comfy_hosts  # noqa: E402  after its folder is on the path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all variants (more: steadier medians)")
    parser.add_argument(
        "--kind", default="sd15", choices=["sd15", "sdxl", "sd3"], help="shallow checkpoint of this architecture"
    )
    parser.add_argument("--size", type=int, default=32, help="latent height and width")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps a run")
    parser.add_argument("--rank", type=int, default=4, help="rank of the adapters, on all attention projections")
    parser.add_argument("--adapters", type=int, nargs="+", default=[2, 3, 4], help="numbers of adapters to blend")
    parser.add_argument("--gpu", action="store_true", help="use the GPU (the host's --cpu otherwise)")
    return parser.parse_args()


def start_host(gpu: bool) -> None:
    hosts = comfy_hosts.find_hosts()
    if not hosts:
        raise SystemExit(comfy_hosts.HOW_TO_GET_ONE)
    sys.path.insert(0, str(hosts[0]))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not gpu
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    print(f"ComfyUI {'.'.join(map(str, comfy_hosts.version(hosts[0])))}", end=", ")


def variants(options: argparse.Namespace, folder: Path) -> dict[str, tuple[Any, int]]:
    """Name -> (MODEL, model calls per step)."""
    import comfy.sd
    import comfy_models
    from comfy_adapters import kohya, write
    from comfy_world import blend_model, load_loras, preference
    from folder_paths import folder_names_and_paths

    folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    most = max(options.adapters)
    tensors = [kohya(options.kind, seed, options.rank) for seed in range(most)]
    files = [Path(write(folder, f"adapter-{i}", part)).name for i, part in enumerate(tensors)]
    model = comfy_models.load(options.kind)
    merged = comfy_models.load.__wrapped__(
        options.kind
    )  # a network of its own: patching it in and out is not the question
    for part in tensors[:3]:
        merged, _ = comfy.sd.load_lora_for_models(merged, None, part, 1 / 3, 0)
    result = {"base": (model, 1), "host's merged LoRAs (3)": (merged, 1)}
    three = load_loras(files[:3])
    weights = preference(1, 1, 1)
    result["stochastic of 3"] = (blend_model(model, three, weights, "stochastic", evaluation="auto"), 1)
    result["soup of 3"] = (blend_model(model, three, weights, "soup", evaluation="auto"), 1)
    for count in options.adapters:
        loras, weights = load_loras(files[:count]), preference(*[1] * count)
        for evaluation in ("sequential", "batched"):
            result[f"blend of {count}, {evaluation}"] = (
                blend_model(model, loras, weights, evaluation=evaluation),
                count,
            )
    return result


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round, taking turns after a warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
        print(f"\rround {number} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def main() -> None:
    options = arguments()
    start_host(options.gpu)
    import comfy_models
    import torch
    from nodes import common_ksampler

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        models = variants(options, Path(folder))
        conds = [comfy_models.conditioning(options.kind, seed) for seed in (1, 2)]
        latent = comfy_models.latent(options.kind, 1, options.size)

        def run(model: Any) -> Callable[[], Any]:
            return lambda: common_ksampler(model, 1, options.steps, 7.0, "euler", "normal", *conds, latent)

        seconds = measure({name: run(model) for name, (model, _) in models.items()}, options.rounds)
        calls = {name: number for name, (_, number) in models.items()}
    print(
        f"shallow {options.kind}, latent {options.size} x {options.size}, rank {options.rank}, {options.steps} steps, cfg 7, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds"
    )
    print(f"{'':28}{'s/step':>9}{'ratio':>8}{'per call':>10}{'calls':>7}")
    table = {}
    for name, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, seconds["base"], strict=True))
        step = statistics.median(times) / options.steps
        table[name] = {
            "seconds_per_step": step,
            "ratio": ratio,
            "ratio_per_call": ratio / calls[name],
            "calls": calls[name],
        }
        print(f"{name:28}{step:9.4f}{ratio:8.3f}{ratio / calls[name]:10.3f}{calls[name]:7d}")
    if options.json:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": str(options.json)}, "figures": table}, indent=1)
        )


if __name__ == "__main__":
    main()
