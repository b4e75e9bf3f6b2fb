# Ratchet's targets. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
UV := $(shell command -v uv 2>/dev/null || echo .build/tools/bin/uv)
ifneq ($(wildcard ../shared/wheels),)
export UV_FIND_LINKS ?= $(abspath ../shared/wheels)
endif
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := -e '.[data,cli]' -e operator -e trainer_image -e rollout_image

.PHONY: help
help: ## List every target
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.build/tools/bin/uv:
	@command -v $(PYTHON) >/dev/null || { echo "Ratchet needs Python 3.11 or newer: install it, or say make PYTHON=python3.12 …"; exit 69; }
	$(PYTHON) -m venv .build/tools && .build/tools/bin/pip install --quiet uv

$(VENV)/.done: pyproject.toml requirements.lock operator/pyproject.toml trainer_image/pyproject.toml rollout_image/pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --constraint requirements.lock --group dev $(PROJECTS)
	@touch $@

.PHONY: venv
venv: $(VENV)/.done ## Make the development environment in .venv

.PHONY: lock
lock: | $(UV) ## Resolve every dependency anew into requirements.lock
	$(UV) pip compile --quiet pyproject.toml operator/pyproject.toml trainer_image/pyproject.toml rollout_image/pyproject.toml \
	  --all-extras --group dev --universal --upgrade --no-header --no-annotate --no-emit-package ratchet-rl -o requirements.lock
	@# One line for torch: its CPU and CUDA builds are the same release, and which one is installed depends on the machine.
	@sed -i -e 's/^\(torch==[0-9.]*\).*/\1/' requirements.lock && uniq requirements.lock requirements.lock.new && mv requirements.lock.new requirements.lock
