# Every target makes its own environment in .venv; only python3 and make are needed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA ?= cuda12
BIN := .venv/bin

.PHONY: demo test parity slow browser fuzz beam gpu docs outputs lint setup nano goldens clean

demo: .venv/installed   ## base -> SFT -> GRPO -> evaluation at nano scale, report in runs/demo
	$(BIN)/zoomearth demo

test: .venv/installed   ## the core suite: no torch, no network, no accelerator
	$(BIN)/python -m pytest -n 2 --dist loadfile

parity: .venv/parity    ## live comparison with HF transformers in torch
	XLA_FLAGS= $(BIN)/python -m pytest -m parity tests

slow: .venv/installed   ## proofs that take minutes: training on meshes and in several processes, killed and resumed
	XLA_FLAGS= $(BIN)/python -m pytest -m slow -rP tests

browser: .venv/browser  ## the pages of evaluations and rollouts, how fast they answer, and the server's page, in an installed Chromium
	$(BIN)/python -m pytest -m 'slow or not slow' -rPs tests/reports/test_episodes_browser.py \
		tests/reports/test_rollouts_browser.py tests/serving/test_page_browser.py tests/serving/test_page_model.py

fuzz: .venv/fuzz        ## 10,000 ill-meant requests to a server; ZOOMEARTH_FUZZ=N for another number
	$(BIN)/python -m pytest -m slow -s tests/serving/test_fuzz.py

beam: .venv-beam/installed  ## the TensorFlow Datasets builders on Apache Beam, in an environment of its own
	.venv-beam/bin/python -m pytest tests/data_pipeline/test_tfds.py

gpu: .venv-gpu/installed  ## the attached NVIDIA GPU on the 3B: attention, decoding, update, GRPO iterations, beside predictions
	mkdir -p runs
	XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 .venv-gpu/bin/zoomearth bench device > runs/gpu.txt
	cat runs/gpu.txt

docs: .venv-docs/installed  ## the site of docs/ in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

outputs: .venv/installed  ## runs the commands of the tutorials and writes what they print into the pages
	$(BIN)/python docs/outputs.py

lint: .venv/dev         ## ruff's checks and format, mypy's types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed  ## the environment alone

nano: .venv/installed   ## trains the base model that ships with the package anew
	$(BIN)/zoomearth pretrain-nano --out runs/nano

goldens: .venv/parity   ## writes the committed goldens anew from HF transformers
	$(BIN)/python tests/make_goldens.py

clean:
	rm -rf .venv .venv-beam .venv-docs .venv-gpu runs site build *.egg-info .pytest_cache .ruff_cache .mypy_cache

.venv/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv/parity: .venv/installed
	$(BIN)/python -m pip install --quiet '$(TORCH)' 'datasets>=4' 'wandb>=0.31'
	$(BIN)/python -m pip install --quiet --no-deps 'dashscope==2.0.2'  # for Qwen's vocabulary, which is inside
	touch $@

.venv/fuzz: .venv/installed
	$(BIN)/python -m pip install --quiet 'schemathesis>=4'
	touch $@

.venv/browser: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	touch $@

.venv-beam/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --upgrade pip
	.venv-beam/bin/python -m pip install --quiet --editable '.[test,beam]'
	touch $@

.venv-gpu/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --upgrade pip
	.venv-gpu/bin/python -m pip install --quiet --editable . 'jax[$(CUDA)]'
	touch $@

.venv-docs/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade pip
	.venv-docs/bin/python -m pip install --quiet 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.29' ruff
	touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
