# Everything a newcomer needs: `make demo` and `make test`.  Each target makes the virtual environment when it is not
# there, and works from anywhere with `make -C FOLDER`.  Variables, on the command line or in the environment:
#   VENV=folder        the virtual environment (.venv)
#   PYTHON=python3.12  what it is made with (python3)
#   CPU_INDEX=never    auto | always | never: PyTorch's CPU index, see requirements/setup_venv.py
#   KEEP=1             keep what PYTHON has already, its CUDA build of torch first of all
#   WHEELS=folder      install from a folder of wheels, without a network; `make wheels` fills it
#   PYTEST="-k closing" further options of pytest
#   PARTS, MINUTES     of make gpu

VENV ?= .venv
PYTHON ?= python3
CPU_INDEX ?= auto
WORKERS ?= 2
PYTEST ?=
PARTS ?=
MINUTES ?= 60
KEEP ?=
WHEELS ?=

BIN := $(abspath $(VENV))/bin
# An environment that is there serves itself, whatever `python3` is.
SETUP_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
TOO_OLD = "[setup] megatron-lst needs Python 3.11 or later, and this is %s (%s): name one, as in make test PYTHON=python3.12\n" % (sys.version.split()[0], sys.executable)
# One thread a process: tests start several processes on few cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
RUN_TESTS := $(TEST_ENV) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv wheels demo test test-all test-wheel test-slurm test-image test-pages bench gpu study lint types imports format docs clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 14

venv:  ## Make or refresh the virtual environment
	@$(SETUP_PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); ok or sys.stderr.write($(TOO_OLD)); sys.exit(not ok)'
	@$(SETUP_PYTHON) requirements/setup_venv.py "$(VENV)" --cpu-index $(CPU_INDEX) $(if $(KEEP),--keep) $(if $(WHEELS),--wheels "$(WHEELS)")

wheels:  ## Fill WHEELS=folder for a machine without a network (KEEP=1: it has torch already)
	@test -n "$(WHEELS)" || { echo "name the folder: make wheels WHEELS=folder" >&2; exit 2; }
	@$(PYTHON) requirements/setup_venv.py --fill "$(WHEELS)" --cpu-index $(CPU_INDEX) $(if $(KEEP),--keep)

demo: venv  ## The main job on the embedded corpus: units, alignment, shards, training, evaluation, generation
	@$(BIN)/lst demo

test: lint types imports  ## Lint, types, import floors and the suite
	$(RUN_TESTS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not slurm and not gpu" $(PYTEST)

test-all: lint types imports  ## The same with long chaos and soak runs, and with GPU tests where there is a GPU
	$(RUN_TESTS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slurm and not gpu" $(PYTEST)
	$(RUN_TESTS) -m gpu $(PYTEST)

test-wheel: venv  ## The wheel that a release publishes, in an environment of its own
	$(RUN_TESTS) -m slow tests/test_installation.py -k wheel_alone $(PYTEST)

test-slurm: venv  ## The tests that need SLURM, on a cluster that they start on this machine (Debian, root)
	$(RUN_TESTS) -m slurm $(PYTEST)

test-image: venv  ## The Dockerfile really built, with buildah on a Debian base, and run (Debian, root)
	$(RUN_TESTS) -m slow tests/launching/test_docker.py $(PYTEST)

test-pages: venv  ## The HTML pages in a real browser, headless Chromium (Debian, root, or Chromium installed)
	$(RUN_TESTS) -m slow tests/pages $(PYTEST)

bench: venv  ## Benchmarks, each after its correctness gate: kernels (needs a GPU), data, step, generation
	@$(BIN)/python -m benchmarks.parts kernels data step generation

# With WHEELS nothing is installed: the wheels that PYTHON lacks are unpacked and put on the path.
gpu: $(if $(WHEELS),,venv)  ## What only a GPU can show, within MINUTES; all of it, or PARTS="kernel-tests kernels" (docs/performance.md)
	@$(if $(WHEELS),$(PYTHON),$(BIN)/python) -m benchmarks.parts $(PARTS) --minutes $(MINUTES) $(if $(WHEELS),--wheels "$(WHEELS)")

study: venv  ## A toy experiment: baseline, static and curriculum under an equal budget, several seeds; QUICK=1: does it run?
	@$(BIN)/python -m examples.study $(if $(QUICK),--quick)

lint: venv  ## Style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: venv  ## Types
	@$(BIN)/mypy

imports: venv  ## The floors of docs/design.md
	@$(BIN)/lint-imports

format: venv  ## Apply the style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: venv  ## Write the pages of all keys from the schemas
	@$(BIN)/lst config keys run > docs/configuration.md
	@$(BIN)/lst config keys prep > docs/preparation.md

clean:  ## Remove caches and build outputs, not runs and not the virtual environment
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
