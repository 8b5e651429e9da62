# coopnet: everything one needs, from a fresh checkout. `make` alone lists the targets.
#
#   make demo                    render, train, replay live, evaluate; result in out/demo/
#   make demo BAG=/path/to/bag   the same with your own recording
#   make demo SCRATCH=1          the same without the shipped weights (a cold start: expect little in minutes)
#   make test                    environment, colcon build, colcon test, test-result
#   make reference-weights       training of the shipped weights: 8 minutes of it (SLICE_MINUTES=8), with everything saved;
#                                the next call goes on, and INSTALL=1 lets the finished weights replace those in models/
#
# Variables: PYTHON=python3.12 (interpreter), ROS_WHEELS=kilted (the ROS 2 that is installed where none is sourced;
# default jazzy), TORCH_INDEX=https://download.pytorch.org/whl/cpu (a torch without CUDA where no GPU is: saves
# gigabytes), SEED=0, OUTPUT=out/demo, DEMO_ARGS="...", TRAIN_ARGS="..." and PYTEST_ARGS="..." (handed on).
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) are honoured.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
ROS_WHEELS ?=
TORCH_INDEX ?=
BAG ?=
SCRATCH ?=
SEED ?= 0
OUTPUT ?= out/demo
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
SLICE_MINUTES ?= 8
INSTALL ?=
TRAIN_ARGS ?=
export PYTHON ROS_WHEELS TORCH_INDEX PYTEST_ARGS

.PHONY: help env build demo test lint bench reference-weights clean distclean

help: ## this list
	@grep -h -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

env: ## the environment (.venv); does nothing when it is up to date
	@scripts/make_env.sh

build: env ## colcon build
	@scripts/build.sh

demo: build ## render, train, replay through the live node, evaluate: out/demo/report.html
	@scripts/run.sh demo --output "$(OUTPUT)" --seed "$(SEED)" \
	    $(if $(BAG),--bag "$(BAG)") $(if $(SCRATCH),--scratch) $(DEMO_ARGS)

test: build ## all tests
	@scripts/test.sh

lint: env ## ruff, check and format
	@scripts/run.sh ruff check .
	@scripts/run.sh ruff format --check .

bench: build ## times of the parts on this machine: out/bench/
	@scripts/run.sh python benchmarks/run.py --output out/bench $(BENCH_ARGS)

reference-weights: build ## trains the shipped weights anew in slices: call again to go on; see SLICE_MINUTES, INSTALL
	@scripts/run.sh python scripts/train_rendered_weights.py --output out/reference_weights \
	    --slice-minutes "$(SLICE_MINUTES)" $(if $(INSTALL),--install) $(TRAIN_ARGS)

clean: ## what building, testing and the demo made (the environment stays)
	rm -rf build install log out .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and the environment
	rm -rf .venv
