# Set-up needs Python >= 3.10 with venv; everything goes into .venv and is redone only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# CUDA torch where there is an NVIDIA driver; on other Linux machines the CPU build, from PyTorch's own index.
TORCH := $(shell if [ "$$(uname)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; \
  then echo "torch==$(TORCH_VERSION)+cpu --extra-index-url https://download.pytorch.org/whl/cpu"; else echo "torch==$(TORCH_VERSION)"; fi)

OLDEST_TRITON := 3.6.0

.PHONY: demo test lint bench accuracy curve test-scale test-oldest-triton test-sanitizers clean

demo: $(READY)
	$(BIN)/sprfast demo

test: lint
	$(BIN)/python -m pytest

# The folders kernels and bench are installed as sprfast.kernels and sprfast.bench; mypy sees them so through a tree of links.
# TensorRT's signatures are those of version 11.4; tests/backends/test_tensorrt_types.py has them of 10.13 too.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	rm -rf build/typed && mkdir -p build/typed/sprfast
	ln -s $(CURDIR)/sprfast/* $(CURDIR)/kernels $(CURDIR)/bench build/typed/sprfast/
	cd build/typed && MYPYPATH=$(CURDIR)/tests/typings/tensorrt-11.4 $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p sprfast

# Micro-benchmarks: on the CUDA device where there is one, else in Triton's interpreter, whose times mean nothing.
# Before a change: make bench ARGS=--benchmark-save=before; after it: make bench ARGS="--benchmark-compare --benchmark-compare-fail=median:10%".
bench: $(READY)
	$(BIN)/python -m pytest bench/micro $(ARGS)

# Three models of a category, and the study of them:
# make accuracy DATA=mvtec CATEGORY=screw SIZE=64 MINUTES=5; STUDY=--quick for the named settings only
ACCURACY := build/accuracy
accuracy: $(READY)
	mkdir -p $(ACCURACY)
	for seed in 0 1 2; do $(BIN)/sprfast train $(DATA) --category $(CATEGORY) --size $(SIZE) --recipe fast --hold-back 0.2 \
	  --time-limit $(MINUTES)m --seed $$seed -o $(ACCURACY)/$(CATEGORY)-$(SIZE)-$$seed.safetensors || exit; done
	$(BIN)/sprfast study $(DATA) $(ACCURACY)/$(CATEGORY)-$(SIZE)-?.safetensors --category $(CATEGORY) $(STUDY) \
	  -o bench/results/study-$(CATEGORY)-$(SIZE).json --figure $(ACCURACY)/$(CATEGORY)-$(SIZE).png

# Accuracy against minutes of training, of both recipes: make curve DATA=mvtec CATEGORY=screw SIZE=64 MINUTES="5 10 20"
curve: $(READY)
	mkdir -p $(ACCURACY)
	for recipe in published fast; do for minutes in $(MINUTES); do $(BIN)/sprfast train $(DATA) --category $(CATEGORY) --size $(SIZE) \
	  --recipe $$recipe --hold-back 0.2 --time-limit $${minutes}m -o $(ACCURACY)/$(CATEGORY)-$(SIZE)-$$recipe-$$minutes.safetensors || exit; done; done
	$(BIN)/sprfast study curve $(DATA) $(ACCURACY)/$(CATEGORY)-$(SIZE)-*-*.safetensors --category $(CATEGORY) \
	  -o bench/results/curve-$(CATEGORY)-$(SIZE).json --figure bench/results/curve-$(CATEGORY)-$(SIZE).png

# Past one process, with the real Ray, the real Triton Inference Server (on Linux and x86-64; run with Python 3.11) and the real torchrun, in
# an environment of its own. Of nvidia-pytriton only the server is used, without what it depends on.
SCALE := $(VENV)-scale
test-scale:
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	grep -v '^ml-dtypes\|^protobuf' constraints.txt | cat - tests/deploy/servers/constraints.txt >$(SCALE)/constraints.txt
	$(SCALE)/bin/python -m pip install --quiet --constraint $(SCALE)/constraints.txt --editable '.[dev,ray]' 'tritonclient[http,grpc]'
	$(SCALE)/bin/python -m pip install --quiet --constraint $(SCALE)/constraints.txt --no-deps nvidia-pytriton
	PATH="$(CURDIR)/$(SCALE)/bin:$$PATH" $(SCALE)/bin/python -m pytest tests/deploy/servers tests/process/test_distributed_training.py

# What runs the kernels, under the oldest Triton that is supported, in an environment of its own; its interpreter needs NumPy < 2.4.
test-oldest-triton:
	$(PYTHON) -m venv $(VENV)-oldest-triton
	$(VENV)-oldest-triton/bin/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	grep -v '^triton\|^numpy' constraints.txt >$(VENV)-oldest-triton/constraints.txt
	$(VENV)-oldest-triton/bin/python -m pip install --quiet --constraint $(VENV)-oldest-triton/constraints.txt --editable '.[dev]' triton==$(OLDEST_TRITON) 'numpy<2.4'
	$(VENV)-oldest-triton/bin/python -m pytest tests/kernels/triton/test_kernels.py tests/kernels/triton/test_kernel_launch.py tests/kernels/triton/test_self_test.py tests/kernels/triton/test_kernels_gpu.py tests/kernels/triton/test_compile_report.py tests/backends/test_backends.py

# The CPU kernels with every access to memory and all arithmetic checked, in a copy of the package.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover
test-sanitizers: $(READY)
	rm -rf build/sanitizers
	CFLAGS="-g $(SANITIZERS)" $(BIN)/python setup.py --quiet build --build-base build/sanitizers --build-lib build/sanitizers
	test -f build/sanitizers/sprfast/kernels/cpu/libsprfast_cpu.so
	cd build/sanitizers && LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(CURDIR)/$(BIN)/python -m pytest $(CURDIR)/tests/kernels/cpu/test_cpu_kernels.py

clean:
	rm -rf build $(VENV) $(SCALE) $(VENV)-oldest-triton *.egg-info kernels/cpu/libsprfast_cpu.* .pytest_cache .mypy_cache .ruff_cache

$(READY): setup.py pyproject.toml constraints.txt Makefile $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sprfast needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 1 --no-deps $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
