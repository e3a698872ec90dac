# Set-up needs Python >= 3.10 with venv; everything goes into .venv and is redone only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# CUDA torch where there is an NVIDIA driver; on other Linux machines the CPU build, from PyTorch's own index.
TORCH := $(shell if [ "$$(uname)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; \
  then echo "torch==$(TORCH_VERSION)+cpu --extra-index-url https://download.pytorch.org/whl/cpu"; else echo "torch==$(TORCH_VERSION)"; fi)

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/sprfast demo

test: lint
	$(BIN)/python -m pytest

# The folder bench is installed as sprfast.bench; mypy sees it so through a tree of links.
lint: $(READY)
	$(BIN)/ruff check .
	rm -rf build/typed && mkdir -p build/typed/sprfast
	ln -s $(CURDIR)/sprfast/* $(CURDIR)/bench build/typed/sprfast/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p sprfast

clean:
	rm -rf build $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): setup.py pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sprfast needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
