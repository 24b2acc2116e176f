# One word per task. Everything happens in .venv; nothing outside the folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv, for it installs in seconds; it reads no pip.conf, so PIP_FIND_LINKS is passed on.
INSTALL := UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --quiet \
	--python $(BIN)/python --constraint constraints.txt
EXAMPLE ?= out
SEED ?= 0
RUN ?= run
LIKE ?= 1b
CASES ?= ../shared/cases
# What --chaos repeats at the full figures; without, a fifth as often or less.
CHAOS := tests/reliability tests/mesh/test_through.py tests/services/bridges/kafka/test_jobs.py \
	tests/on_triton/test_mesh.py
# Processes for the tests that may run side by side. Those of ALONE assert bounds in seconds, or
# fill the machine: they run one after another, after all others.
WORKERS ?= 2
ALONE := tests/reliability tests/on_triton

.PHONY: help try-on test chaos bare cases mutants check format generate bench bench-gpu triton strip evaluate train clean
.DEFAULT_GOAL := help

help: ## show these words
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vtryon needs Python 3.11 or newer; this is %s. Name another: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt 'pip>=25.1' uv
	@touch $@

$(VENV)/.product: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing vtryon[server] ..."
	@$(INSTALL) --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.product
	@echo "installing what the tests need ..."
	@$(INSTALL) --editable '.[loadtest,onnx]' --group dev
	@touch $@

try-on: $(VENV)/.product ## draw a person and a garment, and put one on the other (EXAMPLE=folder SEED=n)
	@$(BIN)/vtryon example-pair --seed $(SEED) --out $(EXAMPLE)
	@$(BIN)/vtryon try-on $(EXAMPLE)/person.png $(EXAMPLE)/garment.png -o $(EXAMPLE)/result.png \
		--prompt "$$(cat $(EXAMPLE)/prompt.txt)" --seed $(SEED) --previews $(EXAMPLE)/previews
	@$(BIN)/vtryon contact-sheet $(EXAMPLE)/person.png $(EXAMPLE)/garment.png $(EXAMPLE)/previews $(EXAMPLE)/result.png \
		-o $(EXAMPLE)/contact-sheet.png

test: $(VENV)/.dev .triton ## run the tests (WORKERS=n PYTEST=options)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) $(ALONE:%=--ignore %) $(PYTEST)
	@$(BIN)/python -m pytest $(filter-out %/on_triton,$(ALONE)) $(PYTEST)
	@$(BIN)/python -m pytest tests/on_triton $(PYTEST)  # a folder called triton on the path breaks torch

chaos: $(VENV)/.dev .triton ## repeat kills and requests at the full figures of docs/guarantees.md, five times and more those of test
	@$(BIN)/python -m pytest --chaos $(CHAOS) $(PYTEST)

bare: $(VENV)/.dev .triton ## run every shell block of the documents in environments with just its extras
	@$(BIN)/python -m pytest -m bare $(PYTEST)

cases: $(VENV)/.dev .triton ## run the scripts of a folder of reported faults (CASES=folder ONLY=words)
	@$(BIN)/python -m tests.cases $(CASES) $(ONLY)

mutants: $(VENV)/.dev .triton ## break important lines one by one; each must be caught (ONLY=words)
	@$(BIN)/python -m tests.mutants $(ONLY)

check: $(VENV)/.dev ## lint, types, layers, contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@if git rev-parse --verify --quiet HEAD~1:buf.yaml >/dev/null; then \
		echo "buf breaking, against the commit before"; $(BIN)/buf breaking --against '.git#ref=HEAD~1'; fi
	$(BIN)/codespell
	@$(BIN)/python protos/generate.py --check
	@$(BIN)/python docs/generate.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@$(BIN)/python -m tests.house

format: $(VENV)/.dev ## format Python and protos
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .
	$(BIN)/buf format --write

generate: $(VENV)/.dev ## make sdk/vtryon/v1 from protos, and docs/reference from the code
	$(BIN)/python protos/generate.py
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev .triton ## measure: try-ons beside diffusers, overload, padding, streaming, shared memory, the mesh, interfaces, hostile callers
	$(BIN)/python -m vtryon_loadtests.throughput --triton --plot docs/throughput.png
	$(BIN)/python -m vtryon_loadtests.overload
	$(BIN)/python -m vtryon_loadtests.floor
	$(BIN)/python -m vtryon_loadtests.padding
	$(BIN)/python -m vtryon_loadtests.tensor_streaming
	$(BIN)/python -m vtryon_loadtests.shared_memory
	$(BIN)/python -m vtryon_loadtests.mesh_cost
	$(BIN)/python -m vtryon_loadtests.interface_cost
	$(BIN)/python -m vtryon_loadtests.hostile

bench-gpu: $(VENV)/.dev ## measure a real-size random checkpoint on a GPU (LIKE=1b)
	test -d out/$(LIKE) || $(BIN)/vtryon models make out/$(LIKE) --random --like $(LIKE) --device cuda
	$(BIN)/python -m vtryon_loadtests.real_size out/$(LIKE)

.triton: $(VENV)/.created
	@echo "installing tritonserver into .triton ..."
	@$(BIN)/python -m pip install --quiet --no-deps --target .triton nvidia-pytriton==0.7.0 \
		|| echo "there is none for this machine: the tests of it are skipped"

triton: $(VENV)/.dev .triton ## install a Triton server for development into .triton

strip: $(VENV)/.product ## draw the strip of held-out examples in the README
	$(BIN)/vtryon mannequin strip -o docs/strip.png

evaluate: $(VENV)/.product ## measure the shipped checkpoint on held-out drawings
	$(BIN)/vtryon mannequin evaluate --full

train: $(VENV)/.product ## train a checkpoint on the drawings, or go on with it (RUN=folder)
	$(BIN)/vtryon mannequin train all $(RUN)

clean: ## remove everything that was set up or made
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
