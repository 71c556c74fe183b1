"""Fuzzes the C++ kernels: `python tests/fuzz`, `python tests/fuzz --guard`.

Runs drawn calls of every raw operator (`operators.py`) on every instruction set that this processor has: any
strides, with memory that ends with the tensor; NaN in all memory that nobody has written; arguments that do not
fit, which must be refused. What looks after memory is AddressSanitizer and UndefinedBehaviorSanitizer, for which the
extension is built anew (with GCC, in minutes); or, with `--guard`, pages without access around all tensors, which
also see what sanitizers do not instrument and take the extension as it is installed. Before the first case it is
made sure that an access past a tensor is seen. The CUDA kernels, as the tests build them for the processor, take
`--guard --extension build/cuda_shim/_shim.so --library fbp_shim`. Exits 1 at the first error and says how to repeat it.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# The level at the end, behind what the kernels ask for: with that, the checks take ten minutes to compile.
COMPILE = "<CMAKE_CXX_COMPILER> <DEFINES> <INCLUDES> <FLAGS> -O1 -o <OBJECT> -c <SOURCE>"
# PyTorch and Python are not instrumented: what they leak is theirs. Fresh memory is filled with NaN.
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONMALLOC": "malloc",
}


def main() -> int:
    """Builds, runs and reports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--extension", type=Path, help="run this one and build none")
    parser.add_argument("--library", default="fbp_native", help="of the extension's operators")
    parser.add_argument("--guard", action="store_true", help="guard pages in place of sanitizers")
    options = parser.parse_args()

    options.build.mkdir(parents=True, exist_ok=True)
    if options.guard:
        extension = options.extension or _installed()
        environment = {"LD_PRELOAD": os.fspath(_guard(options.build))}
    else:
        extension = options.extension or _build(options.build)
        environment = _sanitizers()
    # Scratch memory that is used again would hide what is read before it is written.
    environment = os.environ | {"FBP_SCRATCH_MIB": "0"} | environment
    trace = options.build / "case.txt"
    run = [sys.executable, HERE / "runner.py", "--extension", extension]
    run += ["--library", options.library, "--trace", trace]
    overrun = subprocess.run([*run, "--overrun"], env=environment, capture_output=True, text=True)
    if not _ended_by_guard(overrun):
        print(f"an access past a tensor was not seen:\n{overrun.stderr}", file=sys.stderr)
        return 1
    for name in ("cases", "first", "seed"):
        run += [f"--{name}", str(getattr(options, name))]
    status = subprocess.run(run, env=environment).returncode
    if status:
        last = trace.read_text() if trace.is_file() else "none"
        print(f"\nstatus {status}; the last case begun: {last}", file=sys.stderr)
        print("repeat it with --first NUMBER --cases 1 and the same seed", file=sys.stderr)
    return 1 if status else 0


def _ended_by_guard(done: "subprocess.CompletedProcess[str]") -> bool:
    """Whether a process ended at a memory access, and not for any other reason."""
    return done.returncode == -signal.SIGSEGV or "heap-buffer-overflow" in done.stderr


def _installed() -> Path:
    import fbp_kernels

    folders = [Path(folder) for folder in fbp_kernels.__path__]
    return next(f / "_native.so" for f in folders if (f / "_native.so").is_file())


def _guard(folder: Path) -> Path:
    library = folder / "guard.so"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *flags, HERE / "guard.c", "-o", library, "-ldl"], check=True)
    return library


def _build(folder: Path) -> Path:
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-DCMAKE_CXX_FLAGS={FLAGS}", f"-DCMAKE_CXX_COMPILE_OBJECT={COMPILE}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "CXX": os.environ.get("CXX", "g++"),
    }
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], env=environment, check=True)
    return folder / "_native.so"


def _sanitizers() -> dict[str, str]:
    """The environment of a process whose Python knows nothing of sanitizers."""
    compiler = os.environ.get("CXX", "g++")
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):  # exceptions pass through both
        found = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        libraries.append(found)
    return SANITIZERS | {"LD_PRELOAD": " ".join(libraries)}


if __name__ == "__main__":
    sys.exit(main())
