# Thin wrappers around the `ldmlab` command. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Made again when the dependencies change, and not touched otherwise.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(READY)  ## virtual environment and dependencies

.PHONY: demo
demo: $(READY)  ## the whole main job on embedded data, in minutes
	$(BIN)/ldmlab demo $(ARGS)

.PHONY: train-vae
train-vae: $(READY)  ## stage one: make train-vae ARGS="data=cifar10 downsampling=f8"
	$(BIN)/ldmlab train-vae $(ARGS)

.PHONY: train-ldm
train-ldm: $(READY)  ## stage two: make train-ldm ARGS="data=cifar10 downsampling=f8"
	$(BIN)/ldmlab train-ldm $(ARGS)

.PHONY: sample
sample: $(READY)  ## images: make sample ARGS="from=runs/demo/ldm-f4 label='red circle'"
	$(BIN)/ldmlab sample $(ARGS)

.PHONY: evaluate
evaluate: $(READY)  ## quality and speed: make evaluate ARGS="from=runs/demo/ldm-f4 sampler=ddim"
	$(BIN)/ldmlab evaluate $(ARGS)

.PHONY: sweep
sweep: $(READY)  ## both stages for f1, f2, f4, f8, then the comparison
	$(BIN)/ldmlab train-ldm experiment=downsampling $(ARGS)

.PHONY: compare
compare: $(READY)  ## table, plots and page: make compare ARGS=runs/demo
	$(BIN)/ldmlab compare $(ARGS)

.PHONY: test
test: $(READY)  ## all tests, in two processes
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

.PHONY: bench
bench: $(READY)  ## what each metric sees, on shapes; others: make bench ARGS="data=cifar10 metrics.samples=5000"
	$(BIN)/python benchmarks/metrics.py $(ARGS)

.PHONY: lint
lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(READY)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
