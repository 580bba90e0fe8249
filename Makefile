# Everything starts here; `make` alone lists the targets. Needs make, Python 3.11 or newer, and a network for the first set-up.
VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
WORKERS ?= 2
# For example: make bench BENCH="--sizes 1 --runs 3 --peers floor,duckdb"
BENCH ?=
# For example: make test TESTS="tests/rules -k regex"
TESTS ?=

.PHONY: help demo test test-long lint format bench lock build clean

help:
	@echo "make demo       install into .venv and run the main job on sample files"
	@echo "make test       install into .venv and run all tests (but the long ones)"
	@echo "make test-long  fuzzing, random kills, load"
	@echo "make lint       ruff, formatting, mypy --strict"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      measure against DuckDB, Polars, Spark; BENCH=\"--edge\": the HTTP edge (options in BENCH=\"...\")"
	@echo "make lock       write requirements.lock and requirements-bench.lock anew"
	@echo "make build      build the wheel into dist/"
	@echo "make clean      remove .venv and all caches"

$(INSTALLED): requirements.lock pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh $(VENV) requirements.lock $@

$(BENCH_INSTALLED): requirements-bench.lock pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh $(VENV) requirements-bench.lock $@

demo: $(INSTALLED)
	@$(PYTHON_IN_VENV) scripts/demo.py

test: $(INSTALLED)
	@sh scripts/system-tools.sh
	@$(PYTHON_IN_VENV) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long" $(TESTS)

test-long: $(INSTALLED)
	@sh scripts/system-tools.sh
	@$(PYTHON_IN_VENV) -m pytest -n $(WORKERS) --dist loadfile -m long $(TESTS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(BENCH_INSTALLED)
	@$(VENV)/bin/openaudience bench $(BENCH)

lock:
	sh scripts/lock.sh

build: $(INSTALLED)
	$(PYTHON_IN_VENV) -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) $(VENV)-sqs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
