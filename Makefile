# Everything a developer runs. Each target sets up what it needs: Python >= 3.11 and make are enough on a fresh machine.
# .venv is filled from requirements.lock (make demo alone is content with the smaller demo.lock); see tools/environment.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help demo test check coverage bench sim faults soak test-cluster cluster-up cluster-down images lock clean

PYTHON := .venv/bin/python
SOURCE ?=
ARGS ?=
SOAK_S ?= 600
REGISTRY ?=
TAG ?=
PUSH ?=

help:
	@echo "make demo [SOURCE=dir-or-url]  train a small model on data read through the cache"
	@echo "make test [ARGS='-k name']     all tests, with a real S3 server"
	@echo "make check                     format, lint, types, import contracts, rules of the repository"
	@echo "make coverage                  the tests of the core, and which of its lines and branches they miss"
	@echo "make bench [ARGS=...]          the benchmarks, each against its baseline"
	@echo "make sim [SEED=7]              a cluster on simulated time, network and disks; SEEDS=1-200 runs many, LONG=1 the largest,"
	@echo "                               SCALE=1 prints what 10 to 10,000 nodes cost; alone: seed 1 and that cost"
	@echo "make faults [ARGS=...]         real nodes behind bad networks and disks, and how long a training loop stalled"
	@echo "make soak [SOAK_S=600]         three nodes under 64 readers: no error, every byte right, nothing grows"
	@echo "make test-cluster [ARGS=...]   the tests on a real Kubernetes; the first run on a machine builds it (16 minutes)"
	@echo "make cluster-up [ARGS=...]     a real Kubernetes of three nodes on this machine (root), to try things out"
	@echo "make cluster-down              end it and remove it"
	@echo "make images REGISTRY=...       the images of nodes, operator and CSI driver, and of the example's training (TAG=, PUSH=1)"
	@echo "make lock                      resolve the locks anew"
	@echo "make clean                     remove .venv and what the tools left here"

demo:
	@tools/environment demo
	@SOURCE='$(SOURCE)' $(PYTHON) -m shoal.demo $(ARGS)

test:
	@tools/environment dev
	@tools/versitygw >/dev/null || true
	@tools/cluster-binaries >/dev/null || true
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

sim:
	@tools/environment dev
	@$(PYTHON) -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS),$(if $(LONG),--long,$(if $(SCALE),--scale,$(if $(SEED),--seed $(SEED))))) $(ARGS)

faults:
	@tools/environment dev
	@$(PYTHON) -m pytest -s tests/faults $(ARGS)

soak:
	@tools/environment dev
	@SOAK_S='$(SOAK_S)' $(PYTHON) -m tests.soak

test-cluster:
	@tools/environment dev
	@tools/versitygw >/dev/null || true
	@tools/cluster-binaries >/dev/null || true
	@$(PYTHON) -m pytest tests/crds tests/chart tests/operator tests/csi tests/plugin tests/cluster --ignore=tests/cluster/test_chaos.py $(ARGS)
	@$(PYTHON) -m pytest -s tests/cluster/test_chaos.py $(ARGS)

cluster-up:
	@tools/environment dev
	@$(PYTHON) -m tests.cluster up $(ARGS)

cluster-down:
	@tools/environment dev
	@$(PYTHON) -m tests.cluster down

images:
	@REGISTRY='$(REGISTRY)' TAG='$(TAG)' PUSH='$(PUSH)' ARGS='$(ARGS)' tools/images

lock:
	@tools/lock $(ARGS)

clean:
	@rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
