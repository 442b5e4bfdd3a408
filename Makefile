# `make demo` and `make test` do all of their own set-up on Debian and Raspberry Pi OS.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install demo rig chaos test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [ARGS='--devices 2']  see four agents share one CNN"
	@echo "make rig [ARGS='--devices 8']   measure a fleet of emulated devices (Linux, as root)"
	@echo "make chaos [ARGS='--seconds 60'] break a fleet under load, and count what is lost (Linux)"
	@echo "make install                    .venv/bin/halomq, and nothing else"
	@echo "make test                       all checks and tests"
	@echo "make lint                       ruff and mypy alone"
	@echo "make clean                      remove what these made"

install: $(VENV)/.installed-demo

demo: install
	@.ci/setup broker
	$(BIN)/halomq demo $(ARGS)

rig: install
	@.ci/setup rig
	$(BIN)/python -m benchmarks.rig $(ARGS)

chaos: $(VENV)/.installed-dev
	@.ci/setup rig
	$(BIN)/python -m tests.chaos $(ARGS)

test: lint
	@.ci/setup tests
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy broker_config

clean:
	rm -rf $(VENV) build *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps make repeated runs quick; a change of pyproject.toml installs anew.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	$(PIP) install --editable '.[$*]'
	@touch $@

$(VENV)/.made: .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup venv $(VENV)
	@touch $@

.PRECIOUS: $(VENV)/.installed-% $(VENV)/.made
