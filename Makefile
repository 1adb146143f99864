# Every step of the house; `make help` lists them. Nothing here needs more than GNU make 3.81.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help venv demo test check format lint types imports dependencies test-fast test-slow test-faults test-federation test-gpu bench bench-gpu bench-federated bench-fleet bench-scale bench-stream bench-serve soak clean

# the first supported Python that is there and starts; `make demo PYTHON=/path/to/python3.12` overrides it
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 \
	&& { echo "$$name"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PACKAGES := anabranch client common server stream

# tests use no network and tell nobody about it; one thread a process, so that sums come out the same
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# a file's tests stay together: what they share is made once
TEST_JOBS := -n 2 --dist loadfile

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

venv: $(VENV)/.installed  ## Make .venv with what the program needs

demo: $(VENV)/.installed  ## See all of it: federated rounds, live clicks, recommendations
	@$(BIN)/anabranch demo

test: check test-fast  ## Every gate, then every test that takes seconds

check: format lint types imports dependencies  ## The gates: format, lint, types, imports, dependencies

format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-logo

dependencies: $(VENV)/.installed-dev
	$(BIN)/deptry .

test-fast: $(VENV)/.installed-dev  ## The tests alone, with the examples in the docstrings
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_JOBS) --doctest-modules -m "not slow" tests $(PACKAGES)

test-faults: $(VENV)/.installed-dev  ## Kill workers, producers and brokers while events flow (Apache Kafka where it is found)
	$(TEST_ENV) $(BIN)/python -m pytest tests/integration/faults tests/stream/test_lost.py tests/stream/test_journal.py

test-federation: $(VENV)/.installed-dev  ## A real SuperLink with three SuperNodes on loopback, killed and started again; Ray where it is installed
	$(TEST_ENV) $(BIN)/python -m pytest tests/integration/test_supernodes.py tests/integration/test_ray.py

test-gpu: $(VENV)/.installed-dev  ## The tests that need a CUDA device; skipped without one
	$(TEST_ENV) $(BIN)/python -m pytest -m gpu tests/gpu

test-slow: $(VENV)/.installed-dev  ## The tests that take minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m slow tests

bench: $(VENV)/.installed  ## Measure each claim of benchmarks/ again
	@for claim in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/[a-z]*.py)); do echo "$$claim"; OMP_NUM_THREADS=1 $(BIN)/python "$$claim" || exit 1; done

bench-federated: $(VENV)/.installed  ## Measure what privacy, the cache and aggregation cost
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/federated.py

bench-fleet: $(VENV)/.installed  ## Measure what a round costs beside training, in worker processes and on Ray, and its memory
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fleet.py

bench-scale: $(VENV)/.installed  ## Forecast rounds of a million clients in simulated time (docs/scale.md)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py

bench-gpu: $(VENV)/.installed  ## Measure a GPU beside all cores of its machine; exit code 3 without one
	@$(BIN)/python benchmarks/gpu.py

bench-stream: $(VENV)/.installed  ## Measure speed, errors and memory of the streaming learners beside river
	@for claim in benchmarks/stream_*.py; do echo "$$claim"; OMP_NUM_THREADS=1 $(BIN)/python "$$claim" || exit 1; done

bench-serve: $(VENV)/.installed  ## Measure the service under load while it learns (oha; implicit beside it where installed)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serve.py

soak: $(VENV)/.installed  ## Ask for ten minutes at half the load: memory before and after, failed requests
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serve.py --soak 600

clean:  ## Remove what the targets made; stores of models stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# torch goes first and alone: it is the largest, and the rest then finds it there. --no-compile: a third of the time went
# into modules that nothing imports; Python compiles the others as they are first imported
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python from 3.11 to 3.13 was found; install one, or name it: make demo PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing (some minutes the first time)"
	@$(PIP) install --no-compile -c constraints.txt torch
	@$(PIP) install --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools for checks and tests"
	@$(PIP) install --no-compile -c constraints.txt -e ".[dev]"
	@touch $@
