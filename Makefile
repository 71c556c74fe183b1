# The two commands of the README, and what they are made of. Second runs skip what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.made
SOURCES := $(foreach kind,h cpp cu,$(wildcard kernels/csrc/*.$(kind) kernels/csrc/*/*.$(kind))) $(wildcard avemo/data/csrc/*.cpp)
SHIM := $(wildcard tests/cuda_shim/*.h tests/cuda_shim/*.cpp tests/cuda_shim/*/*.h tests/cuda_shim/*/*/*.h)

.PHONY: help setup demo test test-slow lint bench results check resources ptxas mutants fuzz gpu-dry wheel-test docs torch-versions triton-versions vision prebuilt hub wheel clean

help:
	@echo "make demo        set up, then: make a corpus, prepare, train, evaluate, predict"
	@echo "make test        set up, then run the tests, but for those that are marked slow"
	@echo "make test-slow   those"
	@echo "make lint        format, lint and type checks, as CI does"
	@echo "make check       whether README and docs show the figures of the committed results"
	@echo "make resources   compile every kernel of the Triton backend for sm_80, sm_90 and sm_100, and check the result,"
	@echo "                 unless that has passed on the same sources (kernels/unchanged.json)"
	@echo "make triton-versions  the same, and the kernels in the interpreter, with the newest patch of every Triton claimed"
	@echo "make ptxas       compile every CUDA C++ kernel for sm_80, sm_90a and sm_100, likewise"
	@echo "make docs        build the documentation as a site, into build/site"
	@echo "make mutants     plants mistakes in the bilinear kernel for Hopper, and shows that tests find them (10 minutes)"
	@echo "make fuzz        10,000 calls of the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make gpu-dry     what bench/gpu.sh does on a GPU machine, with interpreter and compiler in place of the GPU"
	@echo "make wheel-test  build a wheel and try it in an environment of its own; compile for the least version of torch"
	@echo "make torch-versions  build with the headers of every version of torch that is claimed, and run in each one (GBs)"
	@echo "make vision      networks of torchvision and timm as encoders, in an environment that has them (GBs)"
	@echo "make prebuilt    build both libraries for other machines, with and without a GPU, into dist/prebuilt"
	@echo "make wheel       the wheel for every Python from 3.10 on, into dist"
	@echo "make hub         fbp_kernels as Hugging Face's \`kernels\` loads it, into dist/hub"
	@echo "make bench       measure this machine's CPU and rewrite the report, on a quiet machine (20 minutes)"
	@echo "make results     measure everything that the README shows anew, on a quiet machine (30 minutes)"
	@echo "make clean       remove the environment, builds and caches"

setup: $(STAMPS)/install

$(STAMPS)/toolchain: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch scikit-build-core cmake ninja
	mkdir -p $(STAMPS) && touch $@

# No build isolation: the extension is compiled against the torch that it will run with.
$(STAMPS)/install: $(STAMPS)/toolchain bench/requirements.txt pyproject.toml CMakeLists.txt $(wildcard kernels/cmake/*) $(SOURCES)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[build,test,lint,export,profile,docs,serve,streams,ray]'
	$(BIN)/python -m pip install --quiet --no-deps -r bench/requirements.txt
	touch $@

demo: setup
	$(BIN)/avemo demo

PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

test: setup
	$(PYTEST) -m "not slow and not packaging"

test-slow: setup
	$(PYTEST) -m "slow and not packaging"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(SHIM)

bench: setup
	$(BIN)/python -m bench run --curves B K H
	$(BIN)/python -m bench goals --out bench/results
	$(BIN)/python -m bench report

results: bench
	rm -rf runs/results # trainings of an earlier run would be kept, and take 0 s
	$(BIN)/avemo demo --compare --out runs/results
	$(BIN)/python -m bench.demo runs/results/demo.json
	$(BIN)/python -m profiling.examples
	$(BIN)/python -m bench report

check: setup
	$(BIN)/python -m bench report --check
	$(BIN)/python -m profiling.examples --check

# What has passed on the same sources with the same tools is left out; see kernels/unchanged.py.
TRITON_SOURCES := $(addprefix kernels/fbp_kernels/,triton tools/resources.py correct.py reference.py tf32.py)

resources: setup
	env -u TRITON_INTERPRET $(BIN)/python kernels/unchanged.py resources $(TRITON_SOURCES) --package triton -- \
		-m fbp_kernels.tools.resources --check

# One folder each, before the environment's own Triton on the path: PyTorch and the rest are shared. The interpreter of
# 3.6 fails with NumPy 2.4 and later.
TRITONS := 3.6.0 3.7.1 3.8.0 3.9.0

triton-versions: $(TRITONS:%=triton-%)

triton-%: build/triton/%/.made
	env -u TRITON_INTERPRET PYTHONPATH=$(abspath $(<D)) $(BIN)/python -m fbp_kernels.tools.resources --check
	PYTHONPATH=$(abspath $(<D)) $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 tests/fbp_kernels/triton

.PRECIOUS: build/triton/%/.made
build/triton/%/.made: | setup
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) triton==$* $(if $(filter 3.6.%,$*),'numpy<2.4')
	touch $@

ptxas: setup
	$(BIN)/python kernels/unchanged.py ptxas kernels/csrc/cuda kernels/csrc/problem.h kernels/fbp_kernels/tools/ptxas.py --tool nvcc -- \
		-m fbp_kernels.tools.ptxas --check

mutants: setup
	$(BIN)/python tests/cuda_shim/mutants.py

fuzz: setup
	$(BIN)/python tests/fuzz

gpu-dry: setup
	PYTHON=$(abspath $(BIN)/python) bench/gpu.sh --dry

wheel-test: setup
	$(BIN)/python -m pytest -m packaging

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

torch-versions: setup
	$(BIN)/python kernels/torch_versions.py all

# Neither imports beside a torch of another build than theirs; the rest comes from the environment of `setup`.
vision: setup
	test -x build/vision/bin/python || $(PYTHON) -m venv build/vision
	build/vision/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 timm
	echo $(abspath $(VENV))/lib/python*/site-packages > $$(echo build/vision/lib/python*/site-packages)/rest.pth
	PYTHONPATH=kernels FBP_BACKEND=reference build/vision/bin/python -m pytest tests/avemo/models/test_networks.py tests/avemo/test_systems.py -k "real_network or published"

prebuilt: setup
	$(BIN)/python kernels/torch_versions.py prebuilt dist/prebuilt

wheel: setup
	$(BIN)/python kernels/wheel.py dist

# The kernels that the set-up has compiled are taken from there.
hub: setup
	$(BIN)/python kernels/hub.py dist/hub --build $(firstword $(wildcard build/py3-none-*) build/hub)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
