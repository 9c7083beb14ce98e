# Two commands: `make demo` and `make test`. Both set up .venv first, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# two files of tests at a time; a file's tests share what they prepare
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: demo test test-fast test-storages check clean

demo: .venv/installed
	$(BIN)/chronostat demo

test: check
	$(PYTEST)

test-fast: .venv/installed
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

# torchao apart: where it is installed every start of transformers loads it, with warnings
test-storages: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target .venv/torchao torchao
	PYTHONPATH=.venv/torchao $(BIN)/python -m pytest tests/storage

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
