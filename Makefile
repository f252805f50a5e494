# What a person types here; `make help` explains it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The Python that makes .venv: 3.11 or newer.
PYTHON ?= python3
# Where pip looks for torch besides its usual index. Empty: the usual index alone, whose torch brings CUDA on Linux.
# For PyTorch's own, smaller CPU wheels: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help install demo demo-once test check format bench bench-variants bench-freshness bench-peers loadtest chaos study constraints documents clean

help: ## what can be made
	@echo "srp4ctr: make TARGET"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20
	@echo "Settings: PYTHON ($(PYTHON)) makes .venv; TORCH_INDEX is an extra index for torch, such as PyTorch's CPU wheels."

install: $(INSTALLED) ## everything into .venv; done by every other target when dependencies have changed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("srp4ctr needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into .venv (torch and friends: a minute or more) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[service,traces,offline,local,loadtest,dev]'
	@touch $@

demo: $(INSTALLED) ## the main job on real data, from MovieLens 100K to a scored request; serves until Ctrl-C
	@$(BIN)/python -m srp4ctr_offline.demo

demo-once: $(INSTALLED) ## the same, and stops the service in the end
	@$(BIN)/python -m srp4ctr_offline.demo --once

test: check ## every check and test, a file of them on each core
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(INSTALLED) ## format, lint, import rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: demo-once ## what serving the demo's model costs, each number beside its aim; seven minutes
	@$(BIN)/python -m srp4ctr_offline.study.plain_graph configs/movielens-100k.toml
	@$(BIN)/python -m srp4ctr_loadtest.bench

bench-variants: demo-once var/sequence.toml ## the scorer's graph in other ways (unfolded, int8, padded, ...): CPU and AUC of each; a quarter of an hour
	@for job in prepare pretrain finetune export; do $(BIN)/srp4ctr $$job var/sequence.toml; done
	@$(BIN)/python -m srp4ctr_offline.study.variants configs/movielens-100k.toml var/sequence.toml --out docs/benchmarks

var/sequence.toml: configs/movielens-100k.toml
	@mkdir -p var
	@sed -e 's/^name = .*/name = "movielens-100k-sequence"/' -e 's/^state = .*/state = "sequence"/' -e '/^recent_events/d' -e '/^layers/d' \
		-e 's/^epochs = 40/epochs = 4/' $< > $@

bench-freshness: demo-once ## event to fresh score, publishing, bytes a user, rollback, AUC by delay; ten minutes
	@$(BIN)/python -m srp4ctr_offline.study.delays configs/movielens-100k.toml
	@$(BIN)/python -m srp4ctr_loadtest.freshness --delays var/runs/movielens-100k/delays/metrics.json \
		$(if $(wildcard var/chaos.txt),--chaos var/chaos.txt) --out docs/benchmarks/freshness.json

bench-peers: demo-once ## our service beside FastAPI, Triton, MLServer, BentoML, Ray Serve and LitServe; 2 GB, about an hour
	@$(BIN)/python -m srp4ctr_loadtest.peers install || true
	@$(BIN)/python -m srp4ctr_offline.study.plain_graph configs/movielens-100k.toml
	@$(BIN)/python -m srp4ctr_loadtest.peers run

loadtest: demo-once ## requests a second at a p99 budget, by locust and at constant rates, every answer checked; three minutes
	@$(BIN)/python -m srp4ctr_loadtest.load

chaos: $(INSTALLED) ## kill -9 of everything 200 times under load, every answer checked; a quarter of an hour
	@mkdir -p var; $(BIN)/python -m srp4ctr_loadtest.chaos > var/chaos.txt; ended=$$?; cat var/chaos.txt; exit $$ended

study: $(INSTALLED) ## train what configs/study.toml plans and is not there yet, then report; hours, and may be cut off
	@$(BIN)/python -m srp4ctr_offline.study.run

documents: $(INSTALLED) ## renew docs/openapi.json and the references of settings and configuration from the code
	@$(BIN)/python -m srp4ctr_service.openapi > docs/openapi.json
	@$(BIN)/python -m srp4ctr_service.settings_document > docs/settings.md
	@$(BIN)/python -m srp4ctr_loadtest.load.settings_document > docs/loadtest-settings.md
	@$(BIN)/python -m srp4ctr_offline.configuration_document > docs/configuration.md

constraints: ## renew constraints.txt with the newest releases that pyproject allows
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[service,traces,offline,local,loadtest,dev]'
	@head -n 1 constraints.txt > constraints.new
	@$(BIN)/python -m pip freeze --all --exclude-editable | grep -vE '^pip==' | sed -E 's/\+[a-z0-9.]+$$//' >> constraints.new
	@mv constraints.new constraints.txt && touch $(INSTALLED)

clean: ## remove .venv and var (data, runs, bundles, the local Redis)
	rm -rf .venv var
