# make quickstart   install into .venv and run the main job on the embedded default
# make test         install into .venv and run the test suite
# make test-peers   compare with torch, transformers and peft, in an environment of its own; with
#                   XLA's own options, where `make test` has it compile in its shortest way
# make lint         ruff
# make bench        speed and memory beside PEFT and PyTorch, on this CPU; tables, and benchmarks/out/cpu.json
# make bench-gpu    the same on an NVIDIA GPU, with a torch that can use it
# PYTHON=python3.13 VENV=.venv313 make test   another interpreter
# make test TESTS='-m "not slow"'             without whole runs and second processes

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
TESTS ?=
# Where a worker is replaced, those that wait for its file wait for ever (pytest-xdist, loadfile).
IN_TWO := --numprocesses=2 --dist=loadfile --max-worker-restart=0
# Scripts of benchmarks/: each prints a table and writes to benchmarks/out/.
BENCH ?= training decoding pipeline curriculum population
BENCH_GPU ?= training_gpu decoding population
# One that fails keeps no other from its turn; Ctrl-C (130) does.
each = failed=0; for name in $(1); do \
	$(2) -m benchmarks.$$name || failed=$$?; [ $$failed != 130 ] || break; done; exit $$failed

.PHONY: quickstart test test-peers lint bench bench-gpu clean

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.company.quickstart --workdir=runs/quickstart

test: $(VENV)/installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest $(IN_TWO) $(TESTS)

test-peers: $(PEERS)/installed
	JAX_PLATFORMS=cpu XLA_FLAGS= $(PEERS)/bin/python -m pytest $(IN_TWO) tests/peers

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

bench: $(PEERS)/installed
	$(call each,$(BENCH),JAX_PLATFORMS=cpu $(PEERS)/bin/python)

bench-gpu: $(PEERS)/installed-gpu
	$(call each,$(BENCH_GPU),JAX_PLATFORMS=cuda $(PEERS)/bin/python)

$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable .[test]
	touch $@

$(PEERS)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --editable .[test,peers]
	touch $@

$(PEERS)/installed-gpu: $(PEERS)/installed
	$(PEERS)/bin/python -m pip install --quiet --editable .[cuda]
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) runs build *.egg-info
