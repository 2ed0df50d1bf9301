# The two commands of the README are `make demo` and `make test`; each does all the set-up it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
export PATH := $(CURDIR)/.tools/bin:$(PATH)
# Without, each of the tests' processes would compile this tree's modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install cluster cluster-down demo demo-down unit test check format generate bench clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## Make .venv with everything in it

.venv/installed: uv.lock pyproject.toml images/install.sh
	@command -v uv >/dev/null || { python3 -m venv .tools && .tools/bin/pip install --quiet uv; }
	images/install.sh development
	@touch $@

cluster: install ## Start a real Kubernetes on this machine, or leave the running one
	$(BIN)/python -m devcluster up

cluster-down: install ## Remove it: processes, mounts, interfaces, cgroups, files
	$(BIN)/python -m devcluster down

demo: $(if $(KUBECONFIG),install,cluster) ## Install the chart and train a model on the cluster
	$(BIN)/python -m demo

demo-down: $(if $(KUBECONFIG),install,cluster-down) ## Remove what the demo made
	$(if $(KUBECONFIG),$(BIN)/python -m demo down)

unit: install ## Fast tests, without processes and without a cluster
	$(BIN)/pytest -n 2 -m "not process and not cluster"

test: ## Everything: checks, unit, process, chart and cluster tests; prints how long each took
	tests/run

check: install ## Lint, types, layers, drift of everything generated
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m tools.generate --check

format: install ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: install ## Write everything that is generated: the CRD, the chart's copy, dashboards, reference
	$(BIN)/python -m tools.generate

bench: install .bench/installed ## Measure speed against peers, and what growing is worth; takes 100 minutes
	PYTHONPATH=.bench OMP_NUM_THREADS=1 $(BIN)/python -m bench

.bench/installed: bench/requirements.txt
	uv pip install --quiet --python $(BIN)/python --target .bench --no-deps -r $<
	@touch $@

clean: ## Remove what can be made again, save a running cluster
	rm -rf .venv .tools .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
