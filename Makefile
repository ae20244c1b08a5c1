# Everything a developer runs. Each target sets up what it needs: Python >= 3.11 and make are enough on a fresh machine.
# .venv is filled from requirements.lock (make demo alone is content with the smaller demo.lock); see tools/environment.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help demo test check coverage bench lock clean

PYTHON := .venv/bin/python
SOURCE ?=
ARGS ?=

help:
	@echo "make demo [SOURCE=dir-or-url]  train a small model on data read through the cache"
	@echo "make test [ARGS='-k name']     all tests, with a real S3 server"
	@echo "make check                     format, lint, types, import contracts, rules of the repository"
	@echo "make coverage                  the tests of the core, and which of its lines and branches they miss"
	@echo "make bench [ARGS=...]          the benchmarks, each against its baseline"
	@echo "make lock                      resolve the locks anew"
	@echo "make clean                     remove .venv and what the tools left here"

demo:
	@tools/environment demo
	@SOURCE='$(SOURCE)' $(PYTHON) -m shoal.demo $(ARGS)

test:
	@tools/environment dev
	@tools/versitygw >/dev/null || true
	@tools/hosts --all
	@$(PYTHON) -m pytest $(ARGS)

check:
	@tools/environment dev
	@tools/check

coverage:
	@tools/environment dev
	@$(PYTHON) -m coverage run --source=shoal_core --data-file=.coverage -m pytest -q tests/core --timeout=300 -o faulthandler_timeout=0
	@$(PYTHON) -m coverage report --data-file=.coverage --show-missing --skip-covered

bench:
	@tools/environment dev
	@$(PYTHON) -m shoal_bench $(ARGS)

lock:
	@tools/lock $(ARGS)

clean:
	@rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
