# A fresh machine needs Python 3.10 or newer; everything else is set up in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: setup demo test lint clean

setup: $(READY)

$(READY): pyproject.toml tests/support/set_up.py
	$(PYTHON) tests/support/set_up.py $(VENV)
	touch $@

demo: $(READY)
	$(VENV)/bin/diffusion-blend demo

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

# One process can hold one ComfyUI: the host tests run once for each that is found.
test: $(READY)
	$(PY) tests/support/run_all.py

clean:
	rm -rf $(VENV)
