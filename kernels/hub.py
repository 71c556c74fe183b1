"""Lays fbp_kernels out as Hugging Face's `kernels` loads it from the hub, or from a folder, without a compiler.

    python kernels/hub.py dist/hub             the kernels for processors
    python kernels/hub.py dist/hub --cuda 130  those for GPUs as well, of CUDA 13.0, by nvcc

The folder has build/VARIANT/ with the Python sources, the libraries and metadata.json. One variant serves every PyTorch
from 2.11 on, and every Python. Its operators have a name of their own, from the commit that it is built of: versions
can be loaded side by side, also beside an installed fbp_kernels.
"""

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import sys
from pathlib import Path

from torch_versions import (
    LEAST,
    MANYLINUX_2_28,
    ROOT,
    check_symbols,
    configure,
    exit_with,
    run,
    tool,
)

PACKAGE = ROOT / "kernels" / "fbp_kernels"
NAME = "fbp-kernels"
VERSION = 0  # of the interface; 0 is one that may change
LEAST_LOADER = "0.17.0"  # of `kernels`: older ones were not tried

# What is for developers needs the repository.
LEFT_OUT = ("tools", "__main__.py", "__pycache__", "*.so", "*_missing.txt", "*.sources")

_LIBRARIES = '''"""The names under which PyTorch knows this version's operators."""

OPERATORS = "{operators}"
NATIVE = "{native}"
'''

_CARD = """---
license: mit
library_name: kernels
tags:
- kernel
---

# fbp-kernels

Fused factorized bilinear pooling, attention pooling, local response and batch normalisation, for PyTorch {least}
and later.

```python
from kernels import get_local_kernel

fbp = get_local_kernel("{folder}")
z = fbp.fbp(a, v, p, q, factor=4)      # a (B, C), v (B, D), p (C, O * 4), q (D, O * 4); z (B, O)
fbp.accelerate(model)                  # in any model: what it knows is swapped for the fused ones, in place
```

Variants: {variants}.
"""


def lay_out(folder: Path, build: Path, cuda: str | None) -> Path:
    """Builds a variant, and writes it into a folder.

    Args:
        folder: of the repository on the hub; other variants in it stay.
        build: a folder of CMake's, made if needed; kernels that are compiled there are not compiled again.
        cuda: the version of CUDA without its dot, such as "130", or None for processors alone.

    Returns:
        The variant's folder.

    Raises:
        RuntimeError: something does not compile, or asks for a newer system than manylinux_2_28.
    """
    kind = "cuda" if cuda else "cpu"
    commit, dirty = _commit()
    identity = f"_{NAME.replace('-', '_')}_{kind}_{commit[:7]}{'_dirty' * dirty}"
    names = {"operators": identity, "native": f"{identity}_native"}
    libraries = _built(build, names["native"], cuda is not None)
    least = "".join(LEAST.split(".")[:2])
    name = f"torch-stable-abi{least}-{f'cu{cuda}' if cuda else 'cpu'}-{platform.machine()}-linux"
    variant = folder / "build" / name
    shutil.rmtree(variant, ignore_errors=True)
    shutil.copytree(PACKAGE, variant, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (variant / "libraries.py").write_text(_LIBRARIES.format_map(names))
    for library in libraries:
        # Their own check of it (kernel-abi-check 0.14.1) finds nothing in a library that is stripped.
        check_symbols(library, MANYLINUX_2_28)
        shutil.copy2(library, variant / library.name.removeprefix("hub"))
    metadata = {
        "name": NAME,
        "id": identity,
        "version": VERSION,
        "license": "MIT",
        "kernels-minver": LEAST_LOADER,
        "python-depends": [],
        "backend": {"type": kind} | ({"archs": _architectures(build)} if cuda else {}),
        "digest": {"algorithm": "sha256", "files": _digests(variant)},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    variants = ", ".join(f"`{path.name}`" for path in sorted((folder / "build").iterdir()))
    card = _CARD.format(least=LEAST, folder=folder.name, variants=variants)
    (folder / "README.md").write_text(card)
    return variant


def _commit() -> tuple[str, bool]:
    """The commit that is checked out, and whether what a variant is built of differs from it."""
    commit = run("git", "-C", ROOT, "rev-parse", "HEAD").strip()
    changed = run("git", "-C", ROOT, "status", "--porcelain", "--", "kernels", "CMakeLists.txt")
    return commit, bool(changed.strip())


def _built(build: Path, operators: str, cuda: bool) -> list[Path]:
    """The libraries, with that name of their operators."""
    targets = ["hub_native", *(["hub_native_cuda"] if cuda else [])]
    if (build / "CMakeCache.txt").is_file():
        run(tool("cmake"), f"-DFBP_HUB={operators}", build)
    else:
        include = run(
            sys.executable, "-c", "import torch; print(torch.__path__[0] + '/include')"
        ).strip()
        configure(build, Path(include), cuda, f"-DFBP_HUB={operators}")
    run(tool("cmake"), "--build", build, "--target", *targets)
    return [build / f"{target}.so" for target in targets]


def _architectures(build: Path) -> list[str]:
    """What the CUDA kernels are compiled for, as the hub writes it: "9.0a", or "10.0+PTX"."""
    cmake = (ROOT / "kernels" / "cmake" / "Cuda.cmake").read_text()
    cache = (build / "CMakeCache.txt").read_text()
    found = re.search(r"^CMAKE_CUDA_ARCHITECTURES:\w+=(.+)$", cache, re.M) or re.search(
        r"set\(CMAKE_CUDA_ARCHITECTURES (.+)\)", cmake
    )
    assert found
    names = []
    for word in re.split(r"[ ;]", found[1]):
        number, letter, real = re.findall(r"^(\d+)([af]?)(-real)?$", word)[0]
        names.append(f"{number[:-1]}.{number[-1]}{letter}{'' if real else '+PTX'}")
    return names


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in files
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", type=Path, help="CMake's folder (build/hub, or build/hub-cuda)")
    parser.add_argument("--cuda", metavar="VERSION", help="such as 130: with the kernels for GPUs")
    options = parser.parse_args(arguments)
    build = options.build or ROOT / "build" / ("hub-cuda" if options.cuda else "hub")
    print(lay_out(options.folder, build, options.cuda))
    return 0


if __name__ == "__main__":
    exit_with(main)
