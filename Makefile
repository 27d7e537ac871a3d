# The same four words everywhere: lint, test, demo, docs. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A CPU build, named so that no registry can answer with gigabytes of CUDA packages; override it where there is no such
# file: make test-torch TORCH=torch==2.13.0
TORCH ?= torch==2.13.0+cpu
DEMO_STORE ?= .trtforge

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-torch faults demo docs clean

help:
	@echo "make demo        a trained model to validated plans for three GPUs, on this machine"
	@echo "make test        the tests; make test-torch those that need torch"
	@echo "make faults      a build is killed, and meets a broken disk, at every file operation in turn: some minutes"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make docs        writes docs/config.md and checks the links"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/pytest -n 2 --dist loadgroup -m "not torch and not serial and not faults"
	$(BIN)/pytest -m "serial and not torch and not faults"

faults: setup
	$(BIN)/pytest -n 2 -m faults tests/faults

$(VENV)-torch/.ready: $(VENV)/.ready
	$(PYTHON) -m venv $(VENV)-torch
	$(VENV)-torch/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)-torch/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" onnxscript safetensors scikit-learn
	$(VENV)-torch/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

test-torch: $(VENV)-torch/.ready
	$(VENV)-torch/bin/python -m pytest -m torch

demo: setup
	$(BIN)/trtforge build store.root=$(DEMO_STORE)

docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/pytest tests/test_docs.py

clean:
	rm -rf $(VENV) $(VENV)-torch .trtforge build dist *.egg-info
