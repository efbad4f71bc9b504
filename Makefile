# `make serve` and `make test` are all a newcomer needs: both make what they lack.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help serve test check live bench openapi lock clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

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

serve: $(VENV)/serve.stamp ## Run the service on this machine: local disk, SQLite, http://127.0.0.1:8000
	@exec $(BIN)/smart-assets serve

test: $(VENV)/dev.stamp ## Run the tests
	@$(BIN)/pytest -n auto -q

check: $(VENV)/dev.stamp ## Run everything a change must pass: formatting, lint, types, import rules, documents, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto

live: $(VENV)/dev.stamp ## Run the storage contract against real servers
	@echo "No storage here needs a server yet: local, memory and direct run under 'make test'."

bench: $(VENV)/dev.stamp ## Measure side by side with a naive endpoint and StaticFiles
	$(BIN)/python -m benchmarks

openapi: $(VENV)/dev.stamp ## Write openapi/ from the code
	$(BIN)/smart-assets openapi openapi

lock: ## Refresh the lock files (needs uv)
	$(LOCK) pyproject.toml --extra s3 --extra cloudinary --group build --output-file requirements/serve.txt
	$(LOCK) pyproject.toml --all-extras --group dev --constraints requirements/serve.txt --output-file requirements/dev.txt
	for extra in gcs azure; do $(LOCK) pyproject.toml --extra $$extra --constraints requirements/dev.txt --output-file requirements/$$extra.txt || exit; done
	$(LOCK) --group live --constraints requirements/dev.txt --output-file requirements/live.txt

clean: ## Remove the environment and caches; ./data stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
