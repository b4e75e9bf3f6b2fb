# Ratchet's targets. `make help` lists them; `make demo` is where to begin.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

export RATCHET_HOME ?= $(HOME)/.cache/ratchet
NODES ?= 1
NAMESPACE ?= ratchet-system

# A folder of wheels beside the checkout saves the download of torch's CUDA build; nothing requires it.
ifneq ($(wildcard ../shared/wheels),)
export UV_FIND_LINKS ?= $(abspath ../shared/wheels)
endif

# Trust what the machine trusts, a company's own certificates included.
export UV_SYSTEM_CERTS ?= 1
# What hack/setup had to install comes first.
export PATH := $(abspath .build/path):$(PATH)
# Tests and benchmarks share their cores with a cluster, and small matrices gain nothing from threads.
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
export PYTHON
MANIFESTS := pyproject.toml operator/pyproject.toml trainer_image/pyproject.toml rollout_image/pyproject.toml \
  inference_image/pyproject.toml
PROJECTS := -e '.[data,cli]' -e operator -e trainer_image -e rollout_image -e inference_image
IMAGES := operator trainer rollout inference
CLUSTER_ENV = KUBECONFIG=$(RATCHET_HOME)/kubeconfig

##@ Begin here

.PHONY: demo
demo: doctor venv install ## From nothing to a learned policy on a local cluster, shown live
	@$(CLUSTER_ENV) hack/demo

.PHONY: test
test: doctor venv install ## Test everything, on the local cluster where a cluster is what is tested
	@# What the demo left running would take the room of the tests' pods on a small machine.
	@$(CLUSTER_ENV) $$(hack/cluster tool kubectl) delete rltrainingjob,policydeployment cartpole --namespace=default --ignore-not-found
	@$(CLUSTER_ENV) $(BIN)/pytest tests

.PHONY: help
help: ## List every target
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z0-9-]*:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ The local cluster

.PHONY: cluster
cluster: doctor setup ## Bring up a kind cluster with metrics, storage and S3; NODES=2 for one more worker
	@hack/cluster up --nodes $(NODES)

.PHONY: images
images: cluster ## Build the images and load them into the cluster, where they changed
	@hack/cluster base-images
	@hack/cluster build $(IMAGES) inference-torch
	@hack/cluster load --all $(IMAGES)

.PHONY: install
install: images ## Install the Helm chart into the cluster
	@$(CLUSTER_ENV) hack/install $(NAMESPACE)

.PHONY: kubeconfig
kubeconfig: ## Print the line that points kubectl and ratchet at the local cluster
	@echo "export KUBECONFIG=$(RATCHET_HOME)/kubeconfig"

.PHONY: stop
stop: ## Delete the cluster; images and tools stay for next time
	@hack/cluster down

.PHONY: clean
clean: ## Leave nothing behind: cluster, images, tools, environment, caches
	@hack/cluster clean
	@rm -rf .venv .build .pytest_cache .ruff_cache .hypothesis .import_linter_cache benchmarks/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Development

.PHONY: test-fast
test-fast: setup venv ## Test everything that needs no cluster
	@$(BIN)/pytest tests -m 'not cluster'

.PHONY: lint
lint: venv ## Style, types and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

.PHONY: format
format: venv ## Format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: manifests
manifests: venv ## Write the CRDs from the API's models, and the dashboards
	@$(BIN)/python -m ratchet.api.crd
	@$(BIN)/python hack/dashboards.py

.PHONY: verify
verify: venv ## Fail where something generated is out of date
	@$(BIN)/python -m ratchet.api.crd --check
	@$(BIN)/python hack/dashboards.py --check
	@$(BIN)/ratchet validate -f examples

.PHONY: benchmark
benchmark: install ## Measure against Stable-Baselines3, KubeRay, FastAPI and others, and print ratios
	@uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --group benchmark
	@for name in learner_speed policy_math policy_server policy_soak client decision_log judge operator_latency; do \
	  $(BIN)/python benchmarks/$$name.py && echo || exit; \
	done
	@$(BIN)/python benchmarks/rollouts.py --healthy 50 --faults 5 --times 5 && echo
	@for name in cartpole_wall_time rollout autoscale; do \
	  $(CLUSTER_ENV) $(BIN)/python benchmarks/$$name.py && echo || exit; \
	done

.PHONY: lock
lock: setup ## Resolve every dependency anew into requirements.lock
	@uv pip compile --quiet $(MANIFESTS) --all-extras --group dev --group benchmark --universal --upgrade \
	  --no-header --no-annotate --no-emit-package ratchet-rl -o requirements.lock >/dev/null
	@# One line for torch: its CPU and CUDA builds are one release, and which of them is installed depends on the machine.
	@sed -i -e 's/^\(torch==[0-9.]*\).*/\1/' requirements.lock && uniq requirements.lock .build/lock && mv .build/lock requirements.lock

.PHONY: venv
venv: .venv/.done ## Make the development environment in .venv

##@ Preparation, called by the others

.PHONY: doctor
doctor: ## Say at once what a cluster would need and this machine lacks
	@test -n "$(PYTHON)" || PYTHON= hack/setup
	@hack/cluster doctor

.PHONY: setup
setup: ## Install what the project needs of the system, where it may
	@hack/setup

.venv/.done: $(MANIFESTS) requirements.lock | setup
	@echo "Python environment in .venv …"
	@test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv
	@uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --group dev $(PROJECTS)
	@touch $@
