# Everything a newcomer runs. `make help` lists it; each target installs what it needs, once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
PROMPT ?= standing on a beach at sunset

DEV := .venv
DEMO := .venv-demo
BIN := $(DEV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types bench tables methods comparison ablations sampling wheel bindings clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(DEMO)/.installed ## one picture with the runtime alone (no PyTorch): demo.png
	@$(DEMO)/bin/python -c "import importlib.util as u; assert not u.find_spec('torch'), 'the runtime must not need PyTorch'"
	@start=$$(date +%s%N); \
	$(DEMO)/bin/bolid-infer examples/ref.png "$(PROMPT)" -o demo.png; \
	echo "$(CURDIR)/demo.png, $$(( ($$(date +%s%N) - start) / 1000000 )) ms from process start to file, without PyTorch"

# One file a worker at a time, so that what a module prepares is prepared once; a worker that dies ends the run, which
# would wait for its tests for ever. PyTorch's threads would wait for each other's cores.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -ra --numprocesses auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

test: lint types ## lint, types and every test
	$(PARALLEL)

check: lint types ## lint, types and the quick tests
	$(PARALLEL) -m "not slow"

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

# Every method begins with random weights on the embedded model's base, with the same pictures and batches. IP-Adapter
# and PuLID know no poses; the base's T2I-Adapter fits both, so they are compared with it, too, and IP-Adapter is trained
# once more beside it. BoLID without labels learns from pairs of pictures alone, as the others do. Every step can be
# repeated after an interruption and goes on where it was.
METHODS := bolid bolid_unlabelled ip_adapter ip_adapter_beside_guider instantid pulid
WITHOUT_POSE := ip_adapter pulid
ABLATIONS := $(addprefix bolid_,no_words words_then_pairs rec no_id no_clip embedding aligned k2 k4 no_zeros \
	5_tokens 40_tokens one_view frozen_guider)
PICTURES := 6000
STEPS := 1500
REID_STEPS := 800
# 2,000 steps of `stage words` and 500 of the adapter took 26 and 15 minutes where IP-Adapter's 1,500 took 34, InstantID's 45
# and PuLID's 25, with 34 for the network of its identity loss
WORDS_STEPS := 2000
STEPS_AFTER_WORDS := 500
WITHOUT_WORDS := bolid_no_words bolid_one_view $(filter-out bolid,$(METHODS))
OTHER_BUDGETS := bolid_5_tokens bolid_40_tokens
UNSEEN := $(BIN)/bolid-train data --out runs/unseen --identities 12000 --views 3 --seed 1 --splits test
teach_words = $(foreach method,$(1),$(BIN)/bolid-train stage words --recipe $(method) --limit $(PICTURES) \
	--steps $(WORDS_STEPS);)
train = $(foreach method,$(1),$(BIN)/bolid-train stage adapter --recipe $(method) --limit $(PICTURES) \
	--steps $(if $(filter $(method),$(WITHOUT_WORDS)),$(STEPS),$(STEPS_AFTER_WORDS));)
methods: $(DEV)/.installed ## train BoLID, IP-Adapter, InstantID and PuLID alike: training/weights/methods, in hours
	$(BIN)/bolid-train data --out runs/people --identities 4000 --views 4 --seed 0 --splits validation
	$(BIN)/bolid-train data --out runs/people --identities 4000 --views 4 --seed 0 --splits train
	test -d runs/avatar/unet/model || $(BIN)/bolid-train unpack
	$(BIN)/bolid-train stage clip_text --limit $(PICTURES)
	$(BIN)/bolid-train stage reid --limit $(PICTURES) --steps $(REID_STEPS)
	$(call teach_words,bolid)
	$(call train,$(METHODS))
	$(BIN)/bolid-train keep $(METHODS) --out training/weights/methods

# $(1) of the runs $(2), to runs/methods/engines
engines = $(foreach method,$(1),$(BIN)/bolid-train assemble --runs $(2) --recipe $(method) \
	$(if $(filter $(method),$(WITHOUT_POSE)),--guider) --out runs/methods/$(method); \
	$(BIN)/bolid-export --model runs/methods/$(method) --precision fp32 --force -o runs/methods/engines/$(method);)
GUIDED := @steps=10@guidance=3
IN_FIGURE := bolid,ip_adapter,instantid,pulid,ip_adapter_pose,pulid_pose,embedded,embedded_2
EXAM := --data runs/unseen --people 1200 --backend openvino --keep runs/methods/drawn
rows = $(foreach model,$(1),$(model)=runs/methods/engines/$(model)$(GUIDED)$(if $(filter $(model),$(WITHOUT_POSE)),@pose=none))
rows_with_guider = $(foreach model,$(1),$(model)_pose=runs/methods/engines/$(model)$(GUIDED))
training/weights/methods:
	$(MAKE) methods

comparison: $(DEV)/.installed training/weights/methods ## measure these methods beside the embedded model: two hours
	$(UNSEEN)
	$(BIN)/bolid-train unpack --runs runs/table
	cp -r training/weights/methods/. runs/table
	$(call engines,$(METHODS),runs/table)
	$(BIN)/bolid-eval compare $(call rows,$(METHODS)) $(call rows_with_guider,$(WITHOUT_POSE)) \
		embedded=embedded embedded_2=embedded@references=2 $(EXAM) \
		-o docs/results/comparison.json --figure docs/images/comparison.png --columns $(IN_FIGURE)
	$(BIN)/python benchmarks/tables.py

ablations: methods ## BoLID without its parts, trained and measured after `make methods`: hours
	$(UNSEEN)
	$(call teach_words,$(OTHER_BUDGETS))
	$(call train,$(ABLATIONS))
	$(call engines,bolid $(ABLATIONS),runs/avatar)
	$(BIN)/bolid-eval compare $(call rows,bolid $(ABLATIONS)) $(EXAM) -o docs/results/ablations.json
	$(BIN)/python benchmarks/tables.py

sampling: $(DEV)/.installed ## the embedded model's four steps, 25 guided ones and the best of several: half an hour
	$(UNSEEN)
	$(BIN)/bolid-train unpack --runs runs/sampling
	$(BIN)/bolid-train assemble --runs runs/sampling --guided
	$(BIN)/bolid-export --model runs/sampling/guided/checkpoint --precision fp32 --force -o runs/sampling/guided/engines
	$(BIN)/bolid-eval compare embedded=embedded guided25=runs/sampling/guided/engines@steps=25@guidance=3 \
		best_of_4=embedded@best_of=4 $(EXAM) -o docs/results/few_steps.json
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
