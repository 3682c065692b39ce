# Everything a newcomer runs. `make help` lists it; each target installs what it needs, once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
PROMPT ?= standing on a beach at sunset

DEV := .venv
DEMO := .venv-demo
BIN := $(DEV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types bench tables wheel bindings clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(DEMO)/.installed ## one picture with the runtime alone (no PyTorch): demo.png
	@$(DEMO)/bin/python -c "import importlib.util as u; assert not u.find_spec('torch'), 'the runtime must not need PyTorch'"
	@start=$$(date +%s%N); \
	$(DEMO)/bin/bolid-infer examples/ref.png "$(PROMPT)" -o demo.png; \
	echo "$(CURDIR)/demo.png, $$(( ($$(date +%s%N) - start) / 1000000 )) ms from process start to file, without PyTorch"

test: lint types ## lint, types and every test
	$(BIN)/pytest -ra

check: lint types ## lint, types and the quick tests
	$(BIN)/pytest -ra -m "not slow"

lint: $(DEV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)/.installed
	$(BIN)/mypy

bench: $(DEV)/.installed ## measure the embedded bundle, then rewrite the tables of README.md
	$(BIN)/pytest --benchmark-only
	$(BIN)/python benchmarks/tables.py

tables: $(DEV)/.installed ## README's tables from benchmarks/results
	$(BIN)/python benchmarks/tables.py

wheel: $(DEV)/.installed ## dist/*.whl
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation

bindings: ## TensorRT 10 and 11 as far as Python names go, so that the tests can check our calls against them
	for version in 10.13 10.16 11.4; do $(PYTHON) -m pip install -q --no-deps --upgrade --target .venv-bindings/$$version \
		"tensorrt-cu13-bindings==$$version.*"; done
	$(PYTHON) -m pip install -q --no-deps --upgrade --target .venv-bindings/cuda cuda-bindings cuda-pathfinder

clean: ## remove environments and caches
	rm -rf $(DEV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png

# An editable install sees new files at once: only pyproject.toml can make it stale.
$(DEV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(BIN)/pip install -qq -e ".[dev]"
	touch $@

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install -qq -e .
	touch $@
