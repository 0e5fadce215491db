# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-gpu test-torch211 lint docs clean

demo: .venv/demo.stamp
	$(BIN)/densecl demo

test: .venv/test.stamp lint
	$(BIN)/python -m pytest -n 2

# What a GPU does beside what a CPU does; `make test` needs none, and sees none.
test-gpu: .venv/test.stamp
	DENSECL_TEST_GPU=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/python -m pytest -m gpu

# The oldest torch that is supported: its private attention operators are not quite the newest's.
test-torch211: .venv-torch211/test.stamp
	.venv-torch211/bin/python -m pytest -n 2

lint: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, into build/site. A warning is an error: a link that leads nowhere, a page without a place.
docs: .venv/docs.stamp
	$(BIN)/python docs/site/pages.py
	$(BIN)/python -m sphinx -W --keep-going -q -c docs/site . build/site
	@echo 'Open build/site/index.html'

clean:
	rm -rf .venv .venv-torch211 build/site

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'densecl needs Python 3.11 or newer. Name one: make PYTHON=python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The stamps spare the installation until pyproject.toml changes.
.venv/demo.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/test.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev,notebooks]'
	@touch $@

.venv/docs.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

.venv-torch211/test.stamp: pyproject.toml
	$(PYTHON) -m venv .venv-torch211
	.venv-torch211/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test,notebooks]' 'torch==2.11.*' 'torchvision==0.26.*'
	@touch $@
