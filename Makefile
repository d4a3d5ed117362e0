# Two commands on a fresh machine: `make repro` and `make test`. Both first make the virtual environment, once per requirements.lock.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2

BIN  := $(VENV)/bin
HERE := $(BIN)/python

# Stages run `python -m stages.<verb>`: the environment's own python must come first. Nothing here looks for a network.
export PATH := $(abspath $(BIN)):$(PATH)
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help repro test test-slow peers-venv peers parity lint venv lock clean

help:
	@echo "make repro      run the pipeline on the built-in data; print the leaderboard and where the report lies"
	@echo "make test       the tests, offline"
	@echo "make test-slow  the tests marked slow"
	@echo "make peers      Assay beside anomalib: times and agreement, written to docs/peers.md and docs/peers_training.md"
	@echo "make parity     every model beside its reference on the same weights, written to docs/parity.md"
	@echo "make lint       ruff"
	@echo "make venv       only the virtual environment ($(VENV)), as requirements.lock says"
	@echo "make lock       resolve requirements.lock anew from pyproject.toml (needs uv and a network)"
	@echo "make clean      remove the virtual environment and caches; results stay"
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  WORKERS=$(WORKERS) (test processes)"

repro: venv
	$(HERE) -m dvc repro
	$(HERE) -m stages.serving.cli leaderboard
	@echo "Report: metrics/report/index.html"

test: venv
	$(HERE) -m pytest -n $(WORKERS) --dist loadfile

test-slow: venv
	$(HERE) -m pytest -n $(WORKERS) --dist loadfile -m slow

# anomalib without its own PyTorch: its environment sees the packages of the first one.
PEERS := .venv-peers
peers-venv: venv
	@cmp -s benchmarks/peers/requirements.txt $(PEERS)/requirements.txt || { set -e; \
	  $(HERE) -m venv --clear $(PEERS); \
	  $(HERE) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > `$(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"`/assay.pth; \
	  $(PEERS)/bin/python -m pip install --disable-pip-version-check --no-input --no-deps -r benchmarks/peers/requirements.txt; \
	  cp benchmarks/peers/requirements.txt $(PEERS)/; }

peers: peers-venv
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 MALLOC_MMAP_THRESHOLD_=4194304 $(PEERS)/bin/python -W ignore -m benchmarks.peers.anomalib -o docs/peers.md
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(PEERS)/bin/python -W ignore -m benchmarks.peers.feature_fed -o docs/peers_training.md

parity: peers-venv
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(PEERS)/bin/python -W ignore -m benchmarks.parity -o docs/parity.md

lint: venv
	$(HERE) -m ruff check .

# The environment keeps a copy of the lock that it was made from, written last: no copy means half-made, another one means outdated, and
# either way it is made anew. An absolute VENV may serve several clones, so the command `assay` (which points at one) goes only into a
# relative one.
venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Assay needs Python 3.11 or newer; '$(PYTHON)' is: `$(PYTHON) --version 2>&1 | head -n 1`"; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),repro) PYTHON=python3.12"; exit 1; }
	@cmp -s requirements.lock "$(VENV)/requirements.lock" || { set -e; \
	  if [ -L "$(VENV)" ]; then echo "VENV=$(VENV) is a symbolic link, which venv would empty and then refuse: name the folder itself."; exit 1; fi; \
	  if [ -n "`ls -A "$(VENV)" 2>/dev/null`" ] && [ ! -e "$(VENV)/pyvenv.cfg" ]; then \
	    echo "VENV=$(VENV) exists and is not a virtual environment: name another folder."; exit 1; fi; \
	  echo "Installing requirements.lock into $(VENV) (about 7 GB with CUDA, some minutes)"; \
	  $(PYTHON) -m venv --clear "$(VENV)"; \
	  "$(HERE)" -m pip install --disable-pip-version-check --no-input -r requirements.lock; \
	  cp requirements.lock "$(VENV)/requirements.lock"; }
ifeq ($(filter /%,$(VENV)),)
	@cmp -s pyproject.toml "$(VENV)/pyproject.toml" || { set -e; \
	  "$(HERE)" -m pip install --quiet --disable-pip-version-check --no-input --no-index --no-deps --no-build-isolation -e .; \
	  cp pyproject.toml "$(VENV)/pyproject.toml"; }
endif

# uv keeps the pins that still fit; the comment at the head of the file is ours.
lock:
	grep '^#' requirements.lock > requirements.lock.head
	uv pip compile --quiet --universal --all-extras --no-annotate --no-header --python-version 3.11 pyproject.toml -o requirements.lock
	cat requirements.lock.head requirements.lock > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm requirements.lock.head

clean:
	@if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
