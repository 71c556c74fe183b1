"""Builds the C++ extension with the headers of other versions of torch than the one that is installed.

    python kernels/torch_versions.py binding [VERSION ...]   compiles all sources that include torch's headers, warnings
                                                             as errors; without a version, with the least one's
    python kernels/torch_versions.py all [VERSION ...]       builds both libraries with each one's headers, and runs
                                                             them in each one, in an environment of its own; what
                                                             was right with these files is not run again
    python kernels/torch_versions.py prebuilt FOLDER         builds both libraries with the least one's headers, to be
                                                             copied to other machines

It needs the repository, cmake, ninja, a compiler, pip and its index; for the CUDA kernels nvcc, but no GPU.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("_native.so", "_native_cuda.so")

# One of each minor version that the package claims to work with, the least one first. A build with the headers of the
# least one is to serve them all.
VERSIONS = ("2.11.0", "2.12.0", "2.13.0", "2.14.1")
LEAST = VERSIONS[0]

# Headers come from the wheels for these systems, the smallest ones: what the extension includes is the same in all.
SYSTEMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")

# The newest that Ubuntu 24.04's C library and GCC 13.3's C++ library bring, which prebuilt libraries may ask for.
NEWEST_SYMBOLS = {"GLIBC": (2, 39), "GLIBCXX": (3, 4, 32), "CXXABI": (1, 3, 14), "GCC": (13, 0, 0)}

# The newest that packages for many systems may ask for: PyTorch's own wheels, ours, and kernels on the hub.
MANYLINUX_2_28 = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}

# What is copied to where it runs.
PARTS = ("kernels/fbp_kernels", "avemo", "bench", "tests")
IGNORED = shutil.ignore_patterns("*.so", "*_missing.txt", "__pycache__", "*.pyc")

WORK = ROOT / "build" / "torch_versions"


def run(
    *command: object, cwd: Path | None = None, env: dict[str, str] | None = None, lines: int = 60
) -> str:
    """What a command prints.

    Raises:
        RuntimeError: its status is not 0; with the last lines of what it printed.
    """
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=env, check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-lines:])
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{last}")
    return done.stdout


def tool(name: str) -> str:
    """A program of this Python's environment, else of the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} is not installed")
    return found


def headers(version: str, folder: Path) -> Path:
    """The include folder of a version of torch, without what is no part of its stable ABI's headers.

    Args:
        version: such as 2.11.0.
        folder: where they go, one for each version; what is there is not fetched again.

    Raises:
        RuntimeError: there is no such version, or its headers are another one's.
    """
    include = folder / "torch" / "include"
    if include.exists():
        return include
    systems = [part for system in SYSTEMS for part in ("--platform", system)]
    run(
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        *systems, "--python-version=3.12", "--dest", folder, f"torch=={version}",
    )  # fmt: skip
    (wheel,) = folder.glob(f"torch-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        stated = archive.read("torch/include/torch/headeronly/version.h").decode()
        if f'"{version}"' not in stated:
            raise RuntimeError(f"the headers in {wheel} are not those of {version}:\n{stated}")
        archive.extractall(folder, [n for n in names if n.startswith("torch/include/torch/")])
    wheel.unlink()
    return include


def configure(build: Path, include: Path, cuda: bool, *options: str) -> None:
    """Sets a folder up for a build with the headers in `include`."""
    run(
        tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DTorch_INCLUDE_DIR={include}", f"-DFBP_CUDA={'ON' if cuda else 'OFF'}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options,
    )  # fmt: skip


def compile_binding(version: str) -> str:
    """Compiles what includes torch's headers, for the CPU and, where there is nvcc, for GPUs; says what that was."""
    with tempfile.TemporaryDirectory() as name:
        folder, build = Path(name), Path(name, "build")
        cuda = shutil.which("nvcc") is not None
        configure(build, headers(version, folder), cuda, "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")
        commands = json.loads((build / "compile_commands.json").read_text())
        binding = [c["output"] for c in commands if Path(c["file"]).parent.name == "binding"]
        objects = [(build / output).relative_to(build) for output in binding]
        run(tool("cmake"), "--build", build, "--target", *objects)
    which = "the CPU and GPUs" if cuda else "the CPU alone, for there is no nvcc"
    return f"torch {version}: {len(objects)} objects of the binding compiled, for {which}"


def build_both(version: str) -> Path:
    """Both libraries, built with a version's headers, for sm_90a; their folder.

    All versions share a folder for the build, which stays: what includes nothing of torch is compiled once.
    """
    include = headers(version, WORK / "headers" / version)
    configure(
        WORK / "build", include, True,
        "-DCMAKE_CUDA_ARCHITECTURES=90a-real", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
    )  # fmt: skip
    run(tool("cmake"), "--build", WORK / "build")
    built = WORK / "built" / version
    built.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        shutil.copy2(WORK / "build" / library, built)
    print(f"torch {version}: both libraries built with its headers, sm_90a", flush=True)
    return built


def install(version: str, folder: Path) -> Path:
    """An environment with a version of torch, and a copy of what runs in it; its Python."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    # Triton 3.6's interpreter, which torch 2.11 asks for, fails with NumPy 2.4 and later.
    packages = (f"torch=={version}", "triton<3.10", "numpy<2.4", "pytest", "hypothesis")
    run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *packages)
    copy_parts(folder)
    return python


def copy_parts(folder: Path) -> None:
    """Copies what runs, without libraries."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=IGNORED)
    shutil.copy2(ROOT / "pyproject.toml", folder)


def run_in(version: str, builds: dict[str, Path], folder: Path) -> list[str]:
    """Runs builds of the libraries in a version of torch; what came out, a line for each one.

    Args:
        version: of the torch that they run in.
        builds: the folder of both libraries, by the version of the headers that they were built with.
        folder: an empty one, for an environment of up to 5 GB.

    Raises:
        RuntimeError: torch cannot be installed, or something does not load or is wrong.
    """
    python = install(version, folder)
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'kernels'}",
        # Graphs that another checkout compiled may call operators that this one does not have.
        "TORCHINDUCTOR_CACHE_DIR": os.fspath(folder / "inductor"),
    }
    for name in ("FBP_BACKEND", "TRITON_INTERPRET"):
        environment.pop(name, None)

    def call(*arguments: str) -> str:
        return run(python, "-m", *arguments, cwd=folder, env=environment)

    said = []
    for built_with, where in builds.items():
        for library in LIBRARIES:
            shutil.copy2(where / library, folder / "kernels" / "fbp_kernels")
        doctor = call("fbp_kernels", "doctor")
        for line in (f"torch {version}", "C++ extension: loaded", "CUDA kernels: loaded"):
            if line not in doctor:
                raise RuntimeError(f"the doctor does not say '{line}':\n{doctor}")
        parity = call(
            "bench", "parity", "--shapes", "tiny", "--backends", "native",
            "--dtypes", "float32", "bfloat16", "float16",
        )  # fmt: skip
        said.append(f"the build for {built_with}: parity: {parity.strip().splitlines()[-1]}")
    # What PyTorch does with the operators does not depend on the build: opcheck, compile, export, autocast.
    tests = call("pytest", "-q", "-p", "no:cacheprovider", "tests/fbp_kernels/test_registration.py")
    return [*said, f"registration: {tests.strip().splitlines()[-1]}"]


def try_all(versions: Sequence[str]) -> int:
    """Builds with the headers of each version, and runs in each one the least one's build and its own.

    Returns:
        0, or 1 where something failed to run.
    """
    built = {version: build_both(version) for version in dict.fromkeys((LEAST, *versions))}
    files, ran = number_of_files(), 0
    for version in versions:
        kept = WORK / "ran" / f"{version}-{files}.txt"
        if not kept.is_file():
            lines = in_an_environment(version, {v: built[v] for v in (LEAST, version)})
            if not lines:
                continue
            kept.parent.mkdir(exist_ok=True)
            kept.write_text("\n".join(lines))
        for line in kept.read_text().splitlines():
            print(f"in torch {version}: {line}", flush=True)
        ran += 1
    print(f"{len(built)} built, without a warning; {ran} of {len(versions)} ran")
    return 0 if ran == len(versions) else 1


def in_an_environment(version: str, builds: dict[str, Path]) -> list[str]:
    """What came out of builds in a version of torch; where it failed that is printed, and there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return run_in(version, builds, Path(folder))
        except RuntimeError as failure:
            print(f"in torch {version}: FAILED: {failure}", flush=True)
            return []


def number_of_files() -> str:
    """A number over everything that is built or run."""
    number = hashlib.sha256()
    files = (f for part in (*PARTS, "kernels/csrc") for f in (ROOT / part).rglob("*"))
    for file in sorted(f for f in files if f.is_file() and not IGNORED(str(f.parent), [f.name])):
        number.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return number.hexdigest()[:16]


def asked_symbols(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest version of each system library's symbols that a library asks for."""
    newest: dict[str, tuple[int, ...]] = {}
    printed = run("objdump", "-T", library, lines=5)
    for name, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)", printed):
        numbers = tuple(map(int, version.split(".")))
        newest[name] = max(newest.get(name, ()), numbers)
    return newest


def check_symbols(library: Path, most: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What `asked_symbols` says, where none is newer than the newest that may be asked for, and none is Python's.

    Raises:
        RuntimeError: one is.
    """
    of_python = re.findall(r"\*UND\*.* (_?Py[A-Z_]\w*)$", run("objdump", "-T", library), re.M)
    if of_python:
        raise RuntimeError(f"{library.name} is bound to a version of Python, by {of_python[0]}")
    symbols = asked_symbols(library)
    for name, version in symbols.items():
        if version > most[name]:
            raise RuntimeError(f"{library.name} asks for {name} {version}, over {most[name]}")
    return symbols


def prebuild(folder: Path, architectures: str | None) -> str:
    """Builds both libraries into FOLDER/kernels/fbp_kernels; says how to use them.

    Raises:
        RuntimeError: something does not compile, or asks for a newer system than Ubuntu 24.04.
    """
    build = ROOT / "build" / "prebuilt"
    chosen = [f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"] if architectures else []
    with tempfile.TemporaryDirectory() as name:
        configure(build, headers(LEAST, Path(name)), True, "-DCMAKE_BUILD_TYPE=Release", *chosen)
        run(tool("cmake"), "--build", build)
    run(tool("cmake"), "--install", build, "--prefix", folder / "kernels")
    number = run(sys.executable, ROOT / "kernels" / "sources.py")  # bench/gpu.sh takes no other
    (folder / "kernels" / "fbp_kernels" / "_native.sources").write_text(number)
    asked = []
    for library in LIBRARIES:
        path = folder / "kernels" / "fbp_kernels" / library
        symbols = check_symbols(path, NEWEST_SYMBOLS)
        wanted = (f"{n}_{'.'.join(map(str, v))}" for n, v in sorted(symbols.items()))
        asked.append(f"{path} ({path.stat().st_size >> 10} KB) asks for {', '.join(wanted)}")
    commit = run("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12").strip()
    return "\n".join(
        (
            *asked,
            f"They are those of {commit}, for torch {LEAST} and later on {os.uname().machine}.",
            f"Copy {folder / 'kernels'} over the kernels/ of a checkout of that commit.",
        )
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, default in (("binding", (LEAST,)), ("all", VERSIONS)):
        command = commands.add_parser(name)
        command.add_argument("versions", nargs="*", metavar="VERSION", default=default)
    prebuilt = commands.add_parser("prebuilt")
    prebuilt.add_argument("folder", type=Path)
    prebuilt.add_argument(
        "--architectures",
        help="as CMAKE_CUDA_ARCHITECTURES has them, such as 90a-real; default: those of the package",
    )
    options = parser.parse_args(arguments)
    if options.command == "all":
        return try_all(options.versions)
    if options.command == "binding":
        for version in options.versions:
            print(compile_binding(version), flush=True)
    else:
        print(prebuild(options.folder, options.architectures))
    return 0


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Ends the process with a command's status; what it cannot do is told without a traceback."""
    try:
        sys.exit(command())
    except RuntimeError as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    exit_with(main)
