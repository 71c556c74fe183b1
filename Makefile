# The two commands of the README, and what they are made of. Second runs skip what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.made
SOURCES := $(wildcard kernels/csrc/*.h kernels/csrc/*.cpp kernels/csrc/*/*.h kernels/csrc/*/*.cpp)

.PHONY: help setup demo test lint results wheel-test clean

help:
	@echo "make demo        set up, then: make a corpus, prepare, train, evaluate, predict"
	@echo "make test        set up, then run all tests"
	@echo "make lint        format, lint and type checks, as CI does"
	@echo "make wheel-test  build a wheel and try it in an environment of its own"
	@echo "make results     measure the README's figures anew, on a quiet machine (20 minutes)"
	@echo "make clean       remove the environment, builds and caches"

setup: $(STAMPS)/install

$(STAMPS)/toolchain: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch scikit-build-core cmake ninja
	mkdir -p $(STAMPS) && touch $@

# No build isolation: the extension is compiled against the torch that it will run with.
$(STAMPS)/install: $(STAMPS)/toolchain pyproject.toml CMakeLists.txt $(wildcard kernels/cmake/*) $(SOURCES)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[build,test,lint]'
	touch $@

demo: setup
	$(BIN)/avemo demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

results: setup
	$(BIN)/avemo demo --compare --out runs/results
	$(BIN)/python -m bench.demo runs/results/demo.json
	$(BIN)/python -m bench.fbp_cpu
	$(BIN)/python -m bench.readme

wheel-test: setup
	$(BIN)/python -m pytest -m packaging

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
