"""Builds the wheel that serves every Python: `python kernels/wheel.py dist`.

It holds libraries that bind to libtorch's stable ABI and to nothing of Python's, so that one build is enough. That they
load on systems as old as manylinux_2_28 is checked; the wheel's name says so.

    python kernels/wheel.py dist --try python3.10 python3.13   tries it in these, too (GBs each)
"""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

from torch_versions import MANYLINUX_2_28, ROOT, check_symbols, exit_with, run

PLATFORM = "manylinux_2_28_{machine}"

# What a user would do first: call a fused kernel and train through it, and see what the command line has.
TRIAL = """
import sys, torch, fbp_kernels as fk
a, v = torch.randn(5, 6), torch.randn(5, 7)
module = fk.FactorizedBilinearPooling(6, 7, 3, 5, adaptive=True)
z = fk.fbp(a, v, module.p, module.q, 5, adaptive=True, backend="native")
torch.testing.assert_close(z, fk.reference.fbp(a, v, module.p, module.q, 5, adaptive=True))
z.sum().backward()
print("Python", sys.version.split()[0], "torch", torch.__version__, "native kernels ran")
"""


def build(folder: Path) -> Path:
    """Builds the wheel into a folder.

    Raises:
        RuntimeError: something does not compile, or a library asks for Python or for a newer system.
    """
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    with tempfile.TemporaryDirectory() as name:
        run(*command, "--outdir", name, ROOT)
        (built,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(built) as archive:
            for member in archive.namelist():
                if member.endswith(".so"):
                    check_symbols(Path(archive.extract(member, name)), MANYLINUX_2_28)
        machine = built.stem.rpartition("linux_")[2]
        folder.mkdir(parents=True, exist_ok=True)
        tag = PLATFORM.format(machine=machine)
        run(sys.executable, "-m", "wheel", "tags", "--platform-tag", tag, "--remove", built)
        (renamed,) = Path(name).glob("*.whl")
        return renamed.replace(folder / renamed.name)


def try_in(python: str, wheel: Path) -> str:
    """What a Python says that runs the wheel's kernels, in an environment of its own.

    Raises:
        RuntimeError: it cannot be installed, or does something else than it should.
    """
    with tempfile.TemporaryDirectory() as name:
        run(python, "-m", "venv", name)
        own = Path(name, "bin", "python")
        run(own, "-m", "pip", "install", "--quiet", "--no-cache-dir", wheel.resolve())
        said = run(own, "-c", TRIAL, cwd=Path(name)).splitlines()[-1]
        return f"{said}; {run(own.with_name('avemo'), '--version', cwd=Path(name)).strip()}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--try", dest="pythons", nargs="+", metavar="PYTHON", default=[])
    options = parser.parse_args(arguments)
    wheel = build(options.folder)
    print(wheel)
    for python in options.pythons:
        print(try_in(python, wheel), flush=True)
    return 0


if __name__ == "__main__":
    exit_with(main)
