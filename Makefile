# Set-up, build and everything that is run often. `make demo` and `make test` need only Python,
# a C++ compiler and, for the CUDA kernels, nvcc. `make help` lists the targets.

PYTHON ?= python3
# The pip requirements (and options) that give PyTorch; `make test TORCH="torch==2.11.0 ..."`.
TORCH ?= torch torchvision
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install
RUN := $(VENV)/bin/python -m

# What a build reads; a change makes the next target build again.
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.PHONY: help demo info test lint format typecheck bench readme gpu build clean FORCE

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: build  ## a photograph through EfficientNetV2-S, patched and not (DEMO="--compile" adds options)
	$(RUN) effv2_kernels demo $(DEMO)

info: build  ## what a bug report needs
	$(RUN) effv2_kernels info

# One thread for each worker: more would fight for the cores.
test: build  ## the whole test suite (TEST="-k gate" adds options)
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto --maxprocesses 8 $(TEST)

lint: build  ## ruff and clang-format, changing nothing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: build  ## the same, changing files
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

typecheck: build  ## mypy
	$(RUN) mypy

bench: build  ## the CPU benchmark and the pages' tables (ten quiet minutes)
	$(RUN) benchmarks cpu --quiet --threads 2
	$(RUN) benchmarks readme

readme: build  ## the tables of README.md and benchmarks/README.md, from the committed CSV files
	$(RUN) benchmarks readme

# With the Python at hand and all that it has: nothing is installed, nothing comes from a network.
gpu:  ## all that needs an NVIDIA GPU (PART=check|speed|more MINUTES=5 RESULTS=DIR STEPS="latency tune" TESTS="-k gate")
	@$(PYTHON) -m benchmarks gpu $(if $(PART),--part $(PART)) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(RESULTS),--results "$(RESULTS)") $(if $(STEPS),--steps "$(STEPS)") \
	  $(if $(TESTS),--tests="$(TESTS)") $(GPU)

build: $(VENV)/installed  ## the virtual environment with everything in it

clean:  ## removes the environment and what was built
	rm -rf $(VENV) .venv-pinned build dist *.egg-info effv2_kernels/*.so .mypy_cache .pytest_cache .ruff_cache

# Set-up in two steps. Each leaves a file, so that a second `make` has nothing to do. torch comes
# first and alone: the build needs its headers, and nothing after it may choose another version.

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	@echo "Installing the build and test tools and building effv2_kernels"
	@$(PIP) --quiet "setuptools>=64" wheel ninja "pybind11>=2.12"
	@$(PIP) --quiet --constraint $(VENV)/torch.lock --no-build-isolation --editable ".[dev]"
	@touch $@

# Its recipe always runs, but it touches the file only where TORCH is not what was installed.
$(VENV)/torch: FORCE
	@if [ "$$(cat $@ 2>/dev/null)" != '$(TORCH)' ]; then \
	  echo "Installing $(TORCH) into $(VENV) (some minutes)" && \
	  if ! [ -x $(VENV)/bin/python ]; then \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")' && \
	    $(PYTHON) -m venv $(VENV); fi && \
	  $(PIP) --upgrade $(TORCH) && \
	  $(RUN) pip --disable-pip-version-check freeze | sed -nE '/^(torch|torchvision|triton)==/p' \
	    >$(VENV)/torch.lock && \
	  printf '%s\n' '$(TORCH)' >$@; \
	fi

FORCE:
