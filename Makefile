.DEFAULT_GOAL := help
.PHONY: help up test coverage check format bench chaos rehearse secrets images cluster airgap sbom backup restore upgrade test-compose test-airgap test-operations clean sync

BIN := .venv/bin

help: ## Show these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

up: sync ## Set everything up and start the platform in the foreground
	@exec $(BIN)/corral up

test: check ## Set everything up and run the whole test suite; PROCESSES=2 runs files side by side
	@$(BIN)/pytest $(if $(PROCESSES),-n $(PROCESSES))

coverage: sync ## Run the whole suite and show which share of the statements of each package it runs
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage json --quiet
	@$(BIN)/python -m tests.coverage_table

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

rehearse: sync ## Ask every query of the dashboards and alerts of a real Prometheus: six minutes
	@$(BIN)/python -m tests.ops.rehearsal

secrets: ## Make the passwords and keys of the cluster under Docker, and its .env
	@ops/secrets.sh

images: ## Build the images of the cluster under Docker; llama.cpp takes its time, once
	CORRAL_SECRETS=none docker compose build registry worker-image

cluster: secrets ## Start the cluster under Docker, or say in one sentence what is in the way
	@ops/cluster.sh up

airgap: images ## Pack the cluster and MODEL=FILE.gguf, called NAME, into dist/ for a machine without a network
	@ops/airgap/pack.sh $(MODEL) $(NAME)

backup: ## Save the cluster's database, secrets and .env: TO=folder-or-file, MODELS=yes for the models too
	@ops/backup.sh $(if $(MODELS),--models) "$(or $(TO),.)"

restore: ## Make a cluster of such a backup and start it: FROM=file, REPLACE=yes where there is one already
	@ops/restore.sh $(if $(REPLACE),--replace) "$(FROM)"

upgrade: ## Bring the running cluster to this checkout; no request fails and no answer is cut off
	@ops/upgrade.sh

sbom: ## Write what is in the images to dist/, as CycloneDX
	docker build --target sbom --output dist .
	docker build --file Dockerfile.worker --target sbom --output dist .

test-compose: sync ## Start a whole cluster under Docker and do to it what happens to clusters
	@$(BIN)/python -m tests.compose

test-airgap: sync ## Install the air-gap kit on an engine without a network, and chat
	@$(BIN)/python -m tests.compose airgap

test-operations: sync ## Upgrade a cluster under load, lose it and restore it: four minutes
	@$(BIN)/python -m tests.compose.operations

clean: ## Remove what was built, but not ~/.corral
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

sync:
	@ops/bootstrap.sh
