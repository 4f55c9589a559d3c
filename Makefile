# `make run` and `make test` work in a fresh clone: every target that needs .venv first creates it from the lock file.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: run
run: .venv/installed ## Run the stale stages of the pipeline, then print the metrics
	@python -m stages.core.config.params
	@python -m flows.rwlock
	@dvc repro
	@python -m stages.core.reporting.results

# The shell takes both from the environment, so that they may contain blanks and quotes.
.PHONY: new-data
new-data: .venv/installed ## Copy your own pictures to data/NAME, check them and add them to DVC: NAME=flowers FROM=~/flowers
	$(if $(and $(NAME),$(FROM)),,$(error NAME or FROM is missing, as in: make new-data NAME=flowers FROM=~/flowers))
	@python -m flows.new_data "$$NAME" "$$FROM"

.PHONY: flow
flow: .venv/installed ## Run the stale stages as a Prefect flow, independent ones at the same time
	@python -m flows.pipeline

.PHONY: schedule
schedule: .venv/installed ## Run the flow every night: start a Prefect server and a worker, until ctrl-C
	@python -m flows.schedule

.PHONY: demo
demo: .venv/installed ## Serve the model on loopback, with a page to draw on and an API, until ctrl-C
	@python -m serving.app

.PHONY: test
test: .venv/installed ## Run the fast tests on all cores
	@pytest --numprocesses=logical -m "not slow"

.PHONY: test-slow
test-slow: .venv/installed ## Run the slow tests: killed processes, servers, browsers, whole recipes
	@python -m tests.browser
	@pytest --numprocesses=logical -m slow

.PHONY: test-all
test-all: test test-slow ## Run all tests

.PHONY: faults
faults: .venv/installed ## Inject many faults (kills, bad bytes, bad input, ...), and write benchmarks/faults.md
	@VISION_PIPELINE_FAULTS=long pytest --timeout=0 tests/faults

.PHONY: audit
audit: .venv/installed ## Check the pinned packages for known vulnerabilities
	@pip-audit --vulnerability-service osv --requirement requirements.lock --disable-pip --no-deps \
		--progress-spinner off 2> .venv/audit.log || { \
		status=$$?; \
		if tail -n 1 .venv/audit.log | grep -qE "Connection(Error|Refused|Timeout)|NameResolution|ConnectTimeout"; then \
			echo "audit: skipped, because no vulnerability database can be reached from here"; \
		else cat .venv/audit.log; exit $$status; fi; }

.PHONY: bench
bench: .venv/installed ## Run most benchmarks on this machine (3 hours on 2 cores), and write benchmarks/*.md
	@dvc repro
	@for each in tutorial speed sharing recipes overfitting inference flow predict serving normalize data_sets; do python -m benchmarks.$$each || exit 1; done

.PHONY: check
check: .venv/installed ## Lint the code, and check its format and types
	ruff check
	ruff format --check
	mypy

.PHONY: format
format: .venv/installed ## Format the code, and fix what the linter can fix
	ruff check --fix
	ruff format

.PHONY: docs
docs: .venv/installed ## Build the documentation; broken links and orphaned pages are errors
	@python -m docs.reference
	@sphinx-build --quiet --fail-on-warning --keep-going -c docs . site
	@echo "docs: site/docs/index.html"

.PHONY: lock
lock: .venv/installed ## Pin the newest versions that pyproject.toml allows
	uv pip compile --upgrade --universal --generate-hashes --no-header --quiet \
		--group dev pyproject.toml --output-file requirements.lock

# uv, which itself comes from the lock file, installs five times as fast as pip. pip is the fallback, because it supports
# more ways to configure an index, such as pip.conf.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; PYTHON=... names one")'
	@echo "Installing the packages that requirements.lock pins into .venv (about 6 GB)"
	@$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.txt
	@.venv/bin/python -m pip install --quiet --require-hashes --requirement .venv/uv.txt
	@.venv/bin/uv pip sync --require-hashes --compile-bytecode --quiet requirements.lock || \
		.venv/bin/python -m pip install --no-deps --require-hashes --requirement requirements.lock
	@touch $@
