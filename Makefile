# `make` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help setup fmt lint types layers check test test-long test-full demo docs bench ci lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV)"
	@$(PIP) install --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY)  ## make .venv and install what requirements.lock pins

fmt: $(READY)  ## format the code and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(READY)  ## style and likely mistakes (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## static types (mypy --strict)
	$(BIN)/mypy

layers: $(READY)  ## a module imports only what is below it (import-linter)
	$(BIN)/lint-imports --no-cache

check: lint types layers  ## lint, types and layers

test: check  ## check, then unit, contract and one-cluster tests (15 minutes at most)
	$(BIN)/pytest -m "not long and not full"

test-long: $(READY)  ## kill tests, examples, jobs
	$(BIN)/pytest -m long

test-full: $(READY)  ## the long tests with their whole counts; hours
	MEDRAY_FULL=1 $(BIN)/pytest -m "long or full"

demo: $(READY)  ## a synthetic hospital, from raw files to an explained answer (4 minutes)
	$(BIN)/medray demo

docs: $(READY)  ## write docs/reference from the code
	$(BIN)/python docs/generate.py

bench: $(READY)  ## measure the claims in the README
	@set -e; for script in benchmarks/bench_*.py; do echo "$$script"; $(BIN)/python "$$script"; done

ci:  ## what continuous integration runs
	.ci/run

lock: $(READY)  ## write requirements.lock from pyproject.toml
	$(BIN)/python .ci/lock.py
