# A fresh machine needs Python 3.10 or newer; everything else is set up in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

UV = $(shell $(PY) -m uv --version >/dev/null 2>&1 && echo $(PY) -m uv || echo uv)

.PHONY: help setup host start demo test lint matrix coverage fuzz registry audit clean
.DEFAULT_GOAL := help

help: ## list these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

# The program compares a fingerprint of what it installs from, and does nothing when the environment is up to date.
setup: ## set up .venv, also for the newest ComfyUI found; does nothing when it is up to date
	@$(PYTHON) tools/set_up.py $(VENV)

host: ## get a ComfyUI for the tests and for `make start` into hosts/
	@$(PYTHON) tools/get_host.py

OPTIONS ?=
start: setup ## start ComfyUI with this checkout in it and print its address
	@$(PY) tools/start.py $(OPTIONS)

demo: setup ## blend the miniature's adapters over the simplex: pictures, Pareto figure, one page
	$(VENV)/bin/diffusion-blend demo

lint: setup ## ruff and basedpyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

# One process can hold one ComfyUI: the host tests run once for each that is found.
test: setup ## every test that can run on this machine
	$(PY) tools/run_all.py

matrix: setup ## the host tests on every ComfyUI version that is promised; minutes each
	$(PY) tools/matrix.py

# The server's and the browser's tests run in other processes and are not counted.
coverage: setup ## branches of the shipped code that no test of one process takes
	$(PY) tools/coverage_report.py

# uv puts atheris in an environment of its own over .venv.
# FUZZ: more options of libFuzzer, a file to run again, or folders of files to start from.
FUZZ_SECONDS ?= 300
FUZZ_SEED ?= 1
fuzz: setup ## mutated adapter files, led by coverage
	$(UV) run --no-project --python $(PY) --with atheris \
		python tools/fuzz_reader.py -max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) $(FUZZ)

registry: setup ## the checks that the Comfy registry runs on a published pack, by its own tool
	$(UV) tool run --from comfy-cli comfy --skip-prompt --no-enable-telemetry node validate

audit: setup ## known vulnerabilities of everything installed
	$(PY) tools/audit.py

clean: ## remove .venv
	rm -rf $(VENV)
