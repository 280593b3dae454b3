# make run    the demo: emulated lines, a failover, a live view
# make test   what CI runs: check, then all tests
# make check  lint, format, types
# make bench  edged beside its peers
#
# Each sets itself up on a fresh machine: a virtual environment in .venv, made again when
# pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test check bench clean

run: $(READY)
	@$(BIN)/edged demo

test: check
	@$(BIN)/pytest -n 2 --dist loadfile

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@$(BIN)/python bench/proxy.py
	@$(BIN)/python bench/latency.py
	@$(BIN)/python bench/streams.py
	@$(BIN)/python bench/hotpath.py --functions 5

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml
	@PYTHON="$(PYTHON)" sh ./.ci/venv $(VENV)
	@touch $@
