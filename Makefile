# A fresh machine needs Python 3.10 or newer; everything else is set up in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

UV = $(shell $(PY) -m uv --version >/dev/null 2>&1 && echo $(PY) -m uv || echo uv)

.PHONY: setup demo test lint matrix coverage fuzz registry audit clean

setup: $(READY)

$(READY): pyproject.toml tools/set_up.py
	$(PYTHON) tools/set_up.py $(VENV)
	touch $@

demo: $(READY)
	$(VENV)/bin/diffusion-blend demo

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

# One process can hold one ComfyUI: the host tests run once for each that is found.
test: $(READY)
	$(PY) tools/run_all.py

# The host tests on every version that is promised; minutes each.
matrix: $(READY)
	$(PY) tools/matrix.py

# Branches of what is shipped that no test of this process takes; the server's and the browser's run elsewhere.
coverage: $(READY)
	$(PY) tools/coverage_report.py

# Mutated adapter files, led by coverage; uv puts atheris in an environment of its own over .venv.
# FUZZ: more options of libFuzzer, a file to run again, or folders of files to start from.
FUZZ_SECONDS ?= 300
FUZZ_SEED ?= 1
fuzz: $(READY)
	$(UV) run --no-project --python $(PY) --with atheris \
		python tools/fuzz_reader.py -max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) $(FUZZ)

# What the Comfy registry runs on a published pack, by its own tool.
registry: $(READY)
	$(UV) tool run --from comfy-cli comfy --skip-prompt --no-enable-telemetry node validate

audit: $(READY)
	$(PY) tools/audit.py

clean:
	rm -rf $(VENV)
