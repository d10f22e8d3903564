.DEFAULT_GOAL := help
.PHONY: help up test coverage check format bench chaos rehearse secrets images cluster airgap sbom backup restore upgrade test-compose test-airgap test-operations clean sync

BIN := .venv/bin

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

up: sync ## Install everything and start the platform in the foreground
	@exec $(BIN)/corral up

test: check ## Install everything and run the whole test suite; PROCESSES=2 runs files in parallel
	@$(BIN)/pytest $(if $(PROCESSES),-n $(PROCESSES))

coverage: sync ## Run the whole suite and show which share of the statements of each package it runs
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage json --quiet
	@$(BIN)/python -m tests.coverage_table

check: sync ## Check the format, lint, types and import rules
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: sync ## Format the code, and fix what the linter can fix
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: ## Run every benchmark: almost an hour
	@ops/bootstrap.sh bench
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit; done

chaos: sync ## Kill a worker every few seconds under 64 clients: three minutes
	@$(BIN)/python -m tests.faults.chaos

rehearse: sync ## Run every query of the dashboards and alerts on a real Prometheus: six minutes
	@$(BIN)/python -m tests.ops.rehearsal

secrets: ## Create the passwords, keys and .env of the cluster under Docker
	@ops/secrets.sh

images: ## Build the images of the cluster under Docker; the first time, compiling llama.cpp takes long
	CORRAL_SECRETS=none docker compose build registry worker-image

cluster: secrets ## Start the cluster under Docker; if it cannot start, print the reason in one sentence
	@ops/cluster.sh up

airgap: images ## Pack the cluster and MODEL=FILE.gguf, with the name NAME, into dist/ for a machine without a network
	@ops/airgap/pack.sh $(MODEL) $(NAME)

backup: ## Save the cluster's database, secrets and .env: TO=folder-or-file, MODELS=yes to save the models too
	@ops/backup.sh $(if $(MODELS),--models) "$(or $(TO),.)"

restore: ## Restore a cluster from a backup and start it: FROM=file, REPLACE=yes to replace an existing cluster
	@ops/restore.sh $(if $(REPLACE),--replace) "$(FROM)"

upgrade: ## Upgrade the running cluster to this checkout, without failed requests or interrupted answers
	@ops/upgrade.sh

sbom: ## Write the contents of the images to dist/, as CycloneDX
	docker build --target sbom --output dist .
	docker build --file Dockerfile.worker --target sbom --output dist .

test-compose: sync ## Start a whole cluster under Docker and test it, failures included
	@$(BIN)/python -m tests.compose

test-airgap: sync ## Install the air-gap kit on an engine without a network, and chat
	@$(BIN)/python -m tests.compose airgap

test-operations: sync ## Upgrade a cluster under load, lose it and restore it: four minutes
	@$(BIN)/python -m tests.compose.operations

clean: ## Remove build outputs, but not ~/.corral
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

sync:
	@ops/bootstrap.sh
