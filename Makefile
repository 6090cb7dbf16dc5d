# `make` alone says what there is.
VENV := .venv
PYTHON ?= python3
UV_VERSION := 0.13.9
EXPERIMENT ?=
SET ?=
SEEDS ?=
COMPILE = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --custom-compile-command "make lock" --quiet
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro gallery test lint format schema golden lock image-locks ui

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  EXPERIMENT=name and SET=\"key.path=value ...\" go with repro; experiments/ holds the names."
	@echo "  SEEDS=\"0 1 2\" goes with repro too: it runs once for each, and ends with mean and deviation over them."

repro: $(VENV)/.ready ## Run prepare, train, evaluate, register through DVC, whatever of it is out of date
ifneq ($(EXPERIMENT)$(SET),)
	ganflow experiment "$(or $(EXPERIMENT),digits-dcgan)" $(foreach pair,$(SET),-S '$(pair)')
endif
ifeq ($(strip $(SEEDS)),)
	dvc repro
else
# DVC writes each seed into params.yaml, which is put back at the end; after a kill -9, the copy lies in .ganflow.
	@mkdir -p .ganflow && kept=$$(mktemp .ganflow/params.XXXXXX) && cp -p params.yaml "$$kept" || exit; \
	trap 'mv "$$kept" params.yaml' EXIT; trap 'exit 130' INT TERM HUP; \
	for seed in $(SEEDS); do echo "dvc exp run -S seed=$$seed"; dvc exp run -S "seed=$$seed" || exit; done
	ganflow summary
endif

gallery: $(VENV)/.ready ## Train every family on the digits, and put its pictures and figures into docs/gallery.md
	python benchmarks/gallery.py

test: $(VENV)/.ready ## Run the tests
	pytest -n 2 --dist worksteal

lint: $(VENV)/.ready ## Check style and types
	ruff check
	ruff format --check
	mypy

format: $(VENV)/.ready ## Put the style right
	ruff check --fix
	ruff format

ui: $(VENV)/.ready ## Open MLflow's pages on this repository's runs, at http://127.0.0.1:5000
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" --host 127.0.0.1 --port 5000

schema: $(VENV)/.ready ## Write params.schema.json, from which editors complete params.yaml
	ganflow schema > params.schema.json

golden: $(VENV)/.ready ## Keep what the pipelines compile to now, for the test that compares
	PYTHONPATH=.:tests python tests/pipelines/golden.py

lock: $(VENV)/.ready ## Choose the versions of all dependencies anew
	$(COMPILE) pyproject.toml --all-extras --group dev --upgrade -o requirements.lock
	$(MAKE) image-locks

image-locks: $(VENV)/.ready ## Write docker/*.lock, the part of requirements.lock that each image needs
	$(COMPILE) -c requirements.lock pyproject.toml --extra kubeflow --extra dvc -o docker/ganflow.lock
	$(COMPILE) -c requirements.lock --group mlflow-server -o docker/mlflow-server.lock
	$(COMPILE) -c requirements.lock --group object-store -o docker/object-store.lock
	$(COMPILE) -c requirements.lock --group build -o docker/build.lock

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --quiet --compile-bytecode --require-hashes -r requirements.lock
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --quiet --no-deps --no-build-isolation --editable .
	touch $@
