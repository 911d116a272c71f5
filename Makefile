# Two commands on a fresh machine with Python 3.11: make demo, make test.
PYTHON ?= python3.11
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --durations=15 --durations-min=15  # two processes with a thread each: torch's threads would be in their way

.PHONY: demo test quick slow check format clean

demo: .venv/run
	$(BIN)/python train.py experiment=demo

test: quick slow

quick: .venv/dev
	$(MAKE) check
	$(PYTEST) -m "not slow and not gpu"

slow: .venv/dev
	$(PYTEST) -m "slow and not gpu"

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
