# Orrery's commands are `make compare` (the main job), `make papers` and `make test`. All set everything up in .venv first.
#
#   make compare              the default comparison; ARGS="..." is passed on to `orrery compare`
#   make papers               the reading list as pages on this machine; ARGS="..." is passed on to `orrery serve`
#   make test                 lint, types and every test
#   make bench               every table of benchmarks/ (an hour); SMALL=1: one row, some minutes, writes nothing; ONLY=NAME: that row
#   make lint | clean
#   make parity-online        equal logits on real checkpoints, which it downloads (about 1.5 GB)
#
# PYTHON=/path/to/python chooses another interpreter (3.10 or newer; 3.11 is the tested one).
#
# How torch is chosen. On Linux the plain `torch` of the public index is a CUDA build: gigabytes, useless without such a
# GPU. So, in this order:
#   GPU found (nvidia-smi lists one):  the plain build, even where a CPU build is offered too
#   Linux without a GPU:  1. "torch==VERSION+cpu" from whatever package index pip is configured with. The public index
#                            cannot hold such a version, so this fails within seconds and downloads nothing; a company
#                            mirror, a wheel folder (PIP_FIND_LINKS) or an image with CPU wheels has it.
#                         2. the same from PyTorch's own CPU index; given up quickly where that is not reachable.
#                         3. the plain build, after saying how large it is.
#   macOS and others:     the plain build, which is a CPU (or Apple GPU) build there
# Set-up runs again only when the text of pyproject.toml or constraints.txt changes: the stamp's name is their checksum.

SHELL     := /bin/sh
VENV      := .venv
BIN       := $(VENV)/bin
TORCH     := $(shell sed -n 's/^torch==//p' constraints.txt)
KEY       := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
BASE      := $(VENV)/ready-$(KEY)
SERVING   := $(VENV)/ready-web-$(KEY)
TESTING   := $(VENV)/ready-test-$(KEY)
PIP       := $(BIN)/python -m pip --disable-pip-version-check --quiet
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help compare papers test lint bench parity-online clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

compare: $(BASE)
	@$(BIN)/orrery compare $(ARGS)

papers: $(SERVING)
	@$(BIN)/orrery serve $(ARGS)

# One worker per core with one thread each: the models of the tests are too small for a matrix product to be worth two.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(TESTING)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(TESTING)
	@for name in $(if $(SMALL)$(ONLY),,parity) loader cross_entropy; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	@echo "== speed"; $(BIN)/python benchmarks/speed.py $(if $(SMALL),--dry --rounds 1 --only $(or $(ONLY),transformer),$(if $(ONLY),--only $(ONLY)))

parity-online: $(TESTING)
	@$(BIN)/python benchmarks/parity_online.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BASE):
	@set -e; \
	for p in $(PYTHON) python3.11 python3.12 python3.13 python3.10 python3 python; do \
	  if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then python=$$p; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "make: no Python 3.10 or newer with venv was found; install one or say make PYTHON=/path/to/python" >&2; exit 2; fi; \
	"$(BIN)/python" -c '' 2>/dev/null || "$$python" -m venv --clear $(VENV); \
	gpu=$$(nvidia-smi -L 2>/dev/null | head -n 1 || true); \
	echo "set-up: $$("$(BIN)/python" --version) in $(VENV); $${gpu:-no NVIDIA GPU}; once, some minutes"; \
	if "$(BIN)/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$(TORCH)')" 2>/dev/null; then \
	  echo "set-up: torch $(TORCH) is there"; \
	elif [ -n "$$gpu" ]; then \
	  echo "set-up: downloading torch $(TORCH) with CUDA: about 3 GB (7 GB on disk)"; \
	  $(PIP) install 'torch==$(TORCH),!=$(TORCH)+cpu' || $(PIP) install 'torch==$(TORCH)'; \
	elif [ "$$(uname -s)" != Linux ]; then \
	  echo "set-up: downloading torch $(TORCH): about 100 MB"; \
	  $(PIP) install 'torch==$(TORCH)'; \
	else \
	  echo "set-up: downloading torch $(TORCH) for CPU: about 200 MB (900 MB on disk)"; \
	  $(PIP) install 'torch==$(TORCH)+cpu' 2>/dev/null \
	  || $(PIP) --timeout 10 --retries 1 install --index-url $(CPU_INDEX) 'torch==$(TORCH)' 2>/dev/null \
	  || { echo "set-up: no CPU build in reach; the plain one brings CUDA: about 3 GB (7 GB on disk)"; $(PIP) install 'torch==$(TORCH)'; }; \
	fi; \
	echo "set-up: downloading the other packages: about 130 MB (400 MB on disk)"; \
	$(PIP) install -c constraints.txt -e .; \
	rm -f $(VENV)/ready-*; touch $@

$(SERVING): $(BASE)
	@echo "set-up: downloading what the pages need: about 5 MB"
	@$(PIP) install -c constraints.txt -e '.[web]'
	@touch $@

$(TESTING): $(BASE)
	@echo "set-up: downloading what the tests need: about 80 MB (400 MB on disk)"
	@$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@
