# Set-up needs Python >= 3.10 with venv; everything goes into .venv and is redone only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# CUDA torch where there is an NVIDIA driver; on other Linux machines the CPU build, from PyTorch's own index.
TORCH_CPU := +cpu --extra-index-url https://download.pytorch.org/whl/cpu
TORCH := torch==$(TORCH_VERSION)$(shell \
  [ "$$(uname)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1 && echo "$(TORCH_CPU)")
# The library of the CPU kernels, or the text that says why it could not be built.
CPU_LIBRARY := $(or $(wildcard kernels/cpu/libsprfast.*),kernels/cpu/libsprfast.so)
INSTALLED := $(READY) $(CPU_LIBRARY)
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sprfast/_version.py)

OLDEST_TRITON := 3.6.0

.PHONY: demo test test-all test-rest test-scale test-oldest-triton test-sanitizers lint docs pictures map
.PHONY: bench accuracy curve install wheel clean

demo: $(INSTALLED)
	$(BIN)/sprfast demo

# The tests that a change needs. What the markers of pyproject.toml select is slow by nature, and is left to test-rest.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --durations=25
PARALLEL := -n $(WORKERS) --dist worksteal
SLOW := interpreter or compile or process or build or fuzz
test: lint
	$(PYTEST) $(PARALLEL) -m "not ($(SLOW) or clock or gpu)"

test-all:
	$(MAKE) test
	$(MAKE) test-rest

# What watches a clock or needs the GPU runs alone.
test-rest: $(INSTALLED)
	$(PYTEST) $(PARALLEL) -m "($(SLOW)) and not (clock or gpu)"
	$(PYTEST) -m "clock or gpu"
	$(MAKE) test-sanitizers

docs: $(INSTALLED)
	$(BIN)/python -m sprfast.cli.reference >docs/command-line.md

# The pictures of the README: the demo's figure, and the throughput of a committed report.
pictures: demo
	cp demo-output/figure.png docs/images/demo.png
	$(BIN)/python -m sprfast.bench.page.figure bench/results/xeon-2core-192.json docs/images/speed.svg

# The map of the imports by room.
map: $(INSTALLED)
	$(BIN)/python tests/support/rooms.py

# The folders kernels and bench are installed as sprfast.kernels and sprfast.bench; mypy sees them so through a tree of
# links.
# TensorRT's signatures are those of version 11.4; tests/backends/test_tensorrt_types.py has them of 10.13 too.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/clang-format --dry-run --Werror kernels/cpu/*.h kernels/cpu/*.cpp include/*.h include/*.hpp \
	  examples/*/*.c examples/*/*.cpp
	rm -rf build/typed && mkdir -p build/typed/sprfast
	ln -s $(CURDIR)/sprfast/* $(CURDIR)/kernels $(CURDIR)/bench build/typed/sprfast/
	cd build/typed && MYPYPATH=$(CURDIR)/tests/typings/tensorrt-11.4 \
	  $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p sprfast

# Micro-benchmarks: on the CUDA device where there is one, else in Triton's interpreter, whose times mean nothing.
# Before a change: make bench ARGS=--benchmark-save=before
# After it: make bench ARGS="--benchmark-compare --benchmark-compare-fail=median:10%"
bench: $(INSTALLED)
	$(BIN)/python -m pytest bench/micro $(ARGS)

# Three models of a category, and the study of them:
# make accuracy DATA=mvtec CATEGORY=screw SIZE=64 RECIPE=repair LENGTH="--time-limit 10m"; LENGTH="--steps 600" trains as
# far on a busy machine; STUDY=--quick for the named settings only
ACCURACY := build/accuracy
STUDIED = $(CATEGORY)-$(SIZE)-$(RECIPE)
accuracy: $(INSTALLED)
	mkdir -p $(ACCURACY)
	for seed in 0 1 2; do \
	  $(BIN)/sprfast train $(DATA) --category $(CATEGORY) --size $(SIZE) --recipe $(RECIPE) --hold-back 0.2 --force \
	    $(LENGTH) --seed $$seed -o $(ACCURACY)/$(STUDIED)-$$seed.safetensors || exit; \
	done
	$(BIN)/sprfast study $(DATA) $(ACCURACY)/$(STUDIED)-?.safetensors --category $(CATEGORY) $(STUDY) \
	  -o bench/results/study-$(STUDIED).json --figure $(ACCURACY)/$(STUDIED).png

# Accuracy against minutes of training, of every recipe: make curve DATA=mvtec CATEGORY=screw SIZE=64 MINUTES="5 10 20"
RECIPES ?= published fast repair
curve: $(INSTALLED)
	mkdir -p $(ACCURACY)
	for recipe in $(RECIPES); do for minutes in $(MINUTES); do \
	  $(BIN)/sprfast train $(DATA) --category $(CATEGORY) --size $(SIZE) \
	    --recipe $$recipe --hold-back 0.2 --force --time-limit $${minutes}m \
	    -o $(ACCURACY)/curve-$(CATEGORY)-$(SIZE)-$$recipe-$$minutes.safetensors || exit; \
	done; done
	$(BIN)/sprfast study curve $(DATA) $(ACCURACY)/curve-$(CATEGORY)-$(SIZE)-*-*.safetensors --category $(CATEGORY) \
	  -o bench/results/curve-$(CATEGORY)-$(SIZE).json --figure bench/results/curve-$(CATEGORY)-$(SIZE).png

# Past one process, in an environment of its own: with the real Ray, the real Triton Inference Server (on Linux and
# x86-64; run with Python 3.11) and the real torchrun. Of nvidia-pytriton only the server is used, without what it
# depends on.
SCALE := $(VENV)-scale
test-scale:
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	grep -v '^ml-dtypes\|^protobuf' constraints.txt | cat - tests/deploy/servers/constraints.txt >$(SCALE)/constraints.txt
	$(SCALE)/bin/python -m pip install --quiet --constraint $(SCALE)/constraints.txt --editable '.[dev,ray]' \
	  'tritonclient[http,grpc]'
	$(SCALE)/bin/python -m pip install --quiet --constraint $(SCALE)/constraints.txt --no-deps nvidia-pytriton
	PATH="$(CURDIR)/$(SCALE)/bin:$$PATH" $(SCALE)/bin/python -m pytest --durations=25 \
	  tests/deploy/servers tests/process/test_distributed_*.py

# What runs the kernels, under the oldest Triton that is supported, in an environment of its own; its interpreter needs
# NumPy < 2.4.
OLDEST := $(VENV)-oldest-triton
test-oldest-triton:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	grep -v '^triton\|^numpy' constraints.txt >$(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]' \
	  triton==$(OLDEST_TRITON) 'numpy<2.4'
	$(OLDEST)/bin/python -m pytest --durations=25 $(PARALLEL) tests/kernels/triton tests/backends/test_backends.py

# The CPU engine with every access to memory and all arithmetic checked, in a copy of the package. ThreadSanitizer runs
# in tests/kernels/cpu/test_cpu_threads.py.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover
test-sanitizers: $(INSTALLED)
	rm -rf build/sanitizers
	CFLAGS="-g $(SANITIZERS)" $(BIN)/python setup.py --quiet build \
	  --build-base build/sanitizers --build-lib build/sanitizers
	test -f build/sanitizers/sprfast/kernels/cpu/libsprfast.so
	cd build/sanitizers && LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(CURDIR)/$(BIN)/python -m pytest -m "not (build or fuzz or clock)" \
	  $(CURDIR)/tests/kernels/cpu/test_cpu_kernels.py $(CURDIR)/tests/kernels/cpu/test_c_interface.py \
	  $(CURDIR)/tests/kernels/cpu/test_c_refusals.py

# The library for C, C++ and C# with its headers, CMake package and pkg-config file; needs CMake and a C++ compiler, no
# Python: make install PREFIX=/opt/sprfast
PREFIX ?= /usr/local
LIBRARY_BUILD ?= build/library
install:
	cmake -S kernels/cpu -B $(LIBRARY_BUILD) -DCMAKE_INSTALL_PREFIX=$(PREFIX)
	cmake --build $(LIBRARY_BUILD) --parallel
	cmake --install $(LIBRARY_BUILD)

# The sdist, and of it the wheel for every Linux from glibc 2.28 on, compiled by Zig, which has the interfaces of every
# glibc. The same commit gives the same bytes. make wheel MACHINE=aarch64 cross-compiles.
WHEEL := $(abspath $(VENV)-wheel)
MACHINE ?= x86_64
DIST ?= $(CURDIR)/dist
TAG = manylinux_2_28_$(MACHINE)
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)
wheel: $(WHEEL)/ready
	$(WHEEL)/bin/python setup.py --quiet sdist --dist-dir $(DIST)
	umask 022 && SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) LDFLAGS=-s \
	  CXX="$(WHEEL)/bin/python -m ziglang c++ -target $(MACHINE)-linux-gnu.2.28 -Qunused-arguments" \
	  $(WHEEL)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir $(DIST) \
	  --config-settings=--build-option=--plat-name=$(TAG) $(DIST)/sprfast-$(VERSION).tar.gz
	$(WHEEL)/bin/auditwheel show $(DIST)/sprfast-$(VERSION)-py3-none-$(TAG).whl

$(WHEEL)/ready: Makefile
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet auditwheel==6.8.2 setuptools==84.2.1 ziglang==0.17.1
	touch $@

clean:
	rm -rf build dist $(VENV) $(SCALE) $(OLDEST) $(WHEEL) *.egg-info kernels/cpu/libsprfast.*
	rm -rf .pytest_cache .mypy_cache .ruff_cache

$(READY): setup.py pyproject.toml constraints.txt Makefile $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	@$(PYTHON) -c 'import sys; v = sys.version; \
	  sys.exit(sys.version_info < (3, 10) and "sprfast needs Python 3.10 or newer, this is " + v.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The install builds it; where its file has gone since, it is built again.
$(CPU_LIBRARY): | $(READY)
	test -f $@ || test -f $(@:.so=.txt) || $(BIN)/python setup.py --quiet build_ext --inplace
