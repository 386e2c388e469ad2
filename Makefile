# make quickstart   install into .venv and run the main job on the embedded default
# make test         install into .venv and run the test suite
# make lint         ruff
# PYTHON=python3.13 VENV=.venv313 make test   another interpreter

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.company.quickstart --workdir=runs/quickstart

test: $(VENV)/installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest

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

clean:
	rm -rf $(VENV) runs build *.egg-info
