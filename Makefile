# make quickstart   install into .venv and run the main job on the embedded default
# make test         install into .venv and run the test suite
# make test-peers   compare with torch, transformers and peft, in an environment of its own
# make lint         ruff
# PYTHON=python3.13 VENV=.venv313 make test   another interpreter
# make test TESTS='-m "not slow"'             without whole runs and second processes

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
TESTS ?=

.PHONY: quickstart test test-peers lint clean

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.company.quickstart --workdir=runs/quickstart

test: $(VENV)/installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(TESTS)

test-peers: $(PEERS)/installed
	JAX_PLATFORMS=cpu $(PEERS)/bin/python -m pytest tests/peers

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

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

clean:
	rm -rf $(VENV) $(PEERS) runs build *.egg-info
