#!/usr/bin/env bash
# Guess: what STABLE_TORCH_LIBRARY cannot register (a misspelt type in a schema, a second schema of the same name) is an error when the
# library is loaded, whichever headers it was built with.
# Real: with the headers of torch 2.11 and 2.12 it loads, nothing is printed, and the one operator is missing or keeps its first schema:
# they drop the status that comes back from a registration. Headers from 2.13 on look at it. Run in torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
for version in 2.11.0 2.12.0; do # any system's wheel has these headers, and those for macOS are small
  v/bin/pip -q --disable-pip-version-check download --no-deps --only-binary=:all: --platform macosx_11_0_arm64 --platform macosx_14_0_arm64 \
    --python-version 3.12 -d "$version" torch=="$version"
  v/bin/python -c "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); z.extractall(sys.argv[2], [n for n in z.namelist() if n.startswith('torch/include/torch/')])" \
    "$version"/*.whl "$version"
done
cat > demo.cpp <<'CPP'
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
using torch::stable::Tensor;
Tensor first(Tensor x) { return x; }
STABLE_TORCH_LIBRARY(NAME, m) {
  m.def("good(Tensor x) -> Tensor");
  m.def("misspelt(Tensr x) -> Tensor");
  m.def("good(Tensor x, int n) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(NAME, CPU, m) { m.impl("good", TORCH_BOX(&first)); }
CPP
cat > look.py <<'PY'
import sys
import torch

name = sys.argv[1]
torch.ops.load_library(f"./{name}.so")  # raises nothing
there = {op: hasattr(getattr(torch.ops, name), op) for op in ("good", "misspelt")}
schema = str(getattr(torch.ops, name).good.default._schema)
print(f"torch {torch.__version__}: {name} loaded without an error; {there}; {schema}")
assert there == {"good": True, "misspelt": False}, there
assert schema == f"{name}::good(Tensor x) -> Tensor", schema
PY
lib=$(v/bin/python -c 'import os, torch; print(os.path.dirname(torch.__file__) + "/lib")')
for version in 2.11.0 2.12.0; do
  name=headers_${version//./_}
  g++ -std=c++17 -fPIC -shared -DNAME="$name" -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem "$version/torch/include" demo.cpp -o "$name.so" -L"$lib" -ltorch_cpu
  v/bin/python look.py "$name" 2> stderr
  test ! -s stderr
done
echo "expected by most: an error while loading; stated: none, and the operators are not there"
echo "as stated"
