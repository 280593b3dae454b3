# make run    the demo: emulated lines, a failover, a live view
# make test   what CI runs: check, then all tests, on the sources as they are
# make test-compiled  the tests of the hot modules once more, compiled
# make check  lint, format, types
# make fast   compile the hot modules, where there is a C compiler; what starts later uses them
# make bench  edged beside its peers, compiled if that is possible
#
# Each sets itself up on a fresh machine: a virtual environment in .venv, made again when
# pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HOT_TESTS := tests/edged/downstream tests/edged/upstream tests/edged/hostile tests/edged/test_exchange.py \
    tests/edged/test_tunnel.py tests/edged/test_accesslog.py tests/edged/test_daemon.py \
    tests/policies/test_attempts.py

.PHONY: run test test-compiled check fast bench clean

run: $(READY)
	@$(BIN)/edged demo

test: check
	@EDGED_COMPILED=0 $(BIN)/pytest -n 3 --dist loadfile

test-compiled: fast
	@EDGED_COMPILED=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not sources' $(HOT_TESTS)

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fast: $(READY)
	@$(BIN)/edged compile

bench: $(READY)
	@$(BIN)/edged compile --if-possible
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
