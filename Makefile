# `make run` and `make test` work in a fresh clone: the first one makes .venv from the lock file.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: run
run: .venv/installed ## Run the stale stages of the pipeline, then print its metrics
	@python -m stages.core.config.params
	@python -m flows.rwlock
	@dvc repro
	@python -m stages.core.reporting.results

.PHONY: flow
flow: .venv/installed ## The same as a Prefect flow: independent stages at the same time
	@python -m flows.pipeline

.PHONY: schedule
schedule: .venv/installed ## Run it every night: a Prefect server, its deployments and a worker, until ctrl-C
	@python -m flows.schedule

.PHONY: demo
demo: .venv/installed ## Draw a digit: a page and an API for the model, on loopback, until ctrl-C
	@python -m serving.app

.PHONY: test
test: .venv/installed ## Run the fast tests, on all cores
	@pytest --numprocesses=logical -m "not slow"

.PHONY: test-slow
test-slow: .venv/installed ## Run the slow tests: killed processes, servers, browsers, whole recipes
	@python -m tests.browser
	@pytest --numprocesses=logical -m slow

.PHONY: test-all
test-all: test test-slow ## Run all tests

.PHONY: faults
faults: .venv/installed ## Try to break it, thoroughly: kills, bad bytes, bad input ... into benchmarks/faults.md
	@VISION_PIPELINE_FAULTS=long pytest --timeout=0 tests/faults

.PHONY: audit
audit: .venv/installed ## Look up known vulnerabilities of the pinned packages
	@pip-audit --vulnerability-service osv --requirement requirements.lock --disable-pip --no-deps \
		--progress-spinner off 2> .venv/audit.log || { \
		status=$$?; \
		if grep -qE "Connection(Error|Refused|Timeout)|NameResolution|ConnectTimeout" .venv/audit.log; then \
			echo "audit: not done: no source of advisories can be reached from here"; \
		else cat .venv/audit.log; exit $$status; fi; }

.PHONY: bench
bench: .venv/installed ## Measure it on this machine, side by side (2 hours on 2 cores), into benchmarks/*.md
	@dvc repro
	@for each in tutorial speed sharing recipes overfitting inference flow predict serving; do python -m benchmarks.$$each || exit 1; done

.PHONY: check
check: .venv/installed ## Lint, check the format and the types
	ruff check
	ruff format --check
	mypy

.PHONY: format
format: .venv/installed ## Put the code into its format
	ruff check --fix
	ruff format

.PHONY: docs
docs: .venv/installed ## Build the documentation; a broken link or a page that nothing leads to is an error
	@python -m docs.reference
	@sphinx-build --quiet --fail-on-warning --keep-going -c docs . site
	@echo "docs: site/docs/index.html"

.PHONY: lock
lock: .venv/installed ## Pin the newest versions that pyproject.toml admits
	uv pip compile --upgrade --universal --generate-hashes --no-header --quiet \
		--group dev pyproject.toml --output-file requirements.lock

# uv, itself from the lock file, installs five times as fast as pip, which knows more ways to an index (pip.conf)
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; PYTHON=... names one")'
	@echo "Installing what requirements.lock pins into .venv (about 6 GB)"
	@$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.txt
	@.venv/bin/python -m pip install --quiet --require-hashes --requirement .venv/uv.txt
	@.venv/bin/uv pip sync --require-hashes --compile-bytecode --quiet requirements.lock || \
		.venv/bin/python -m pip install --no-deps --require-hashes --requirement requirements.lock
	@touch $@
