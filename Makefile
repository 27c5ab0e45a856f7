# `make chat`, `make serve` and `make test` do all the set-up; running any again installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
WORKERS ?= 2
TORCH := torch==2.13.0

.PHONY: chat serve test test-gpu lint format wheel clean
.DELETE_ON_ERROR:

chat: $(VENV)/.installed
	$(BIN)/remuda chat $(ARGS)

serve: $(VENV)/.installed
	$(BIN)/remuda serve --port $(PORT) $(ARGS)

# Ranks and tests share the cores: one thread per process keeps them from waiting for each other.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q $(ARGS)

# On a machine with a GPU: tests/gpu, which `make test` never collects. Triton compiles here and interprets there.
test-gpu: $(VENV)/.installed-test
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -q tests/gpu $(ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(VENV)/.installed
	rm -rf build
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Remuda needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: an open range would let pip choose a build with gigabytes of CUDA libraries.
$(VENV)/.torch: | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH) 'setuptools>=77'
	touch $@

# Building the native kernels is an optimisation: without gcc the torch operations serve.
$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	-$(BIN)/remuda native --quiet
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[test]'
	touch $@

$(VENV)/.installed-lint: pyproject.toml $(VENV)/.installed-test
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
