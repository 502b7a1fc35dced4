# The two commands of a newcomer are `make bench` and `make test`; both begin with `make setup`, which runs once.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
STAMP := $(VENV)/.installed
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

.PHONY: setup bench test test-slow gpu gpu-truth lint types contracts schemas clean

setup: $(STAMP)

$(STAMP): pyproject.toml kernels/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "efftrain needs Python 3.11, 3.12 or 3.13; choose one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@command -v nvidia-smi >/dev/null 2>&1 || [ -n "$(TORCH_INDEX)" ] \
	  || echo "no NVIDIA driver found: a smaller PyTorch without CUDA comes with: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX) -c constraints.txt -e kernels -e '.[dev]'
	@touch $(STAMP)

bench: setup
	$(BIN)/efftrain bench --preset quick --out reports/quick --force

test: setup lint types contracts
	$(PYTEST) -n $(WORKERS) -m "not slow"

# Every shape and every shipped kernel, which takes longer than one waits for.
test-slow: setup
	$(PYTEST) -n $(WORKERS) -m slow

# Works in a bare CUDA image too, with torch, triton, numpy and pytest and without `make setup`; call it again to go on.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	PYTHONPATH=kernels $(GPU_PYTHON) -m efftrain_kernels.evidence gpu $(GPU_ARGS)

# What the energy counter is worth, and the first study on CUDA: docs/gpu.md. Needs no pydantic; call it again to go on.
TRUTH_PLANS ?= reports/plans
TRUTH_OUT ?= reports/truth
gpu-truth:
	PYTHONPATH=kernels:. $(GPU_PYTHON) -m benchmarks.gpu_truth run --plans $(TRUTH_PLANS) --out $(TRUTH_OUT) $(TRUTH_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/basedpyright

contracts: setup
	$(BIN)/lint-imports

schemas: setup
	$(BIN)/python -m efftrain.record.schema

clean:
	rm -rf $(VENV) reports/quick
