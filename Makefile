# Two commands on a fresh machine with Python 3.11: make demo, make test.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test quick slow check format clean

demo: .venv/run
	$(BIN)/python train.py experiment=demo

test: quick slow

quick: .venv/dev
	$(MAKE) check
	$(BIN)/pytest -m "not slow and not gpu"

slow: .venv/dev
	$(BIN)/pytest -m "slow and not gpu"

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and alone: with its version settled nothing pulls another build of it
.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	touch $@

.venv/run: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/run

clean:
	rm -rf .venv .mypy_cache .ruff_cache build dist runs
