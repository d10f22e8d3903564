.DEFAULT_GOAL := help
.PHONY: help up test check format bench chaos clean sync

BIN := .venv/bin

help: ## Show these targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

up: sync ## Set everything up and start the platform in the foreground
	@exec $(BIN)/corral up

test: check ## Set everything up and run the whole test suite
	@$(BIN)/pytest

check: sync ## Formatting, lint, types, and who may import whom
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: sync ## Format the code, and mend what the linter can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: ## Run every benchmark: most of an hour
	@ops/bootstrap.sh bench
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit; done

chaos: sync ## Kill a worker every few seconds under 64 clients: three minutes
	@$(BIN)/python -m tests.faults.chaos

clean: ## Remove what was built, but not ~/.corral
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

sync:
	@ops/bootstrap.sh
