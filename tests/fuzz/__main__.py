"""Fuzzes the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: `python tests/fuzz`.

Builds the extension with both in `--build`, checks that an access past a tensor is seen, and runs drawn calls of
every raw operator (`operators.py`) on every instruction set that this processor has: any strides, with memory that
ends with the tensor; NaN in all memory that nobody has written; arguments that do not fit, which must be refused.
Exits 1 at the first error and says how to repeat it. Needs GCC and its sanitizers' libraries.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
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
    parser.add_argument("--extension", type=Path, help="run this one, as it is, and build nothing")
    parser.add_argument("--library", default="fbp_native", help="of the extension's operators")
    options = parser.parse_args()

    sanitized = options.extension is None
    extension = _build(options.build) if sanitized else options.extension
    environment = os.environ | (_preloaded() if sanitized else {})
    options.build.mkdir(parents=True, exist_ok=True)
    trace = options.build / "case.txt"
    run = [sys.executable, os.fspath(HERE / "runner.py"), "--extension", os.fspath(extension)]
    run += ["--library", options.library, "--trace", os.fspath(trace)]
    if sanitized:
        seen = subprocess.run([*run, "--overrun"], env=environment, capture_output=True, text=True)
        if "heap-buffer-overflow" not in seen.stderr:
            print(f"an access past a tensor was not seen:\n{seen.stderr}", file=sys.stderr)
            return 1
    numbers = {"--cases": options.cases, "--first": options.first, "--seed": options.seed}
    run += [str(part) for pair in numbers.items() for part in pair]
    status = subprocess.run(run, env=environment).returncode
    if status:
        last = trace.read_text() if trace.is_file() else "none"
        print(f"\nstatus {status}; the last case begun: {last}", file=sys.stderr)
        print("repeat it with --first NUMBER --cases 1 and the same seed", file=sys.stderr)
    return 1 if status else 0


def _build(folder: Path) -> Path:
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-DCMAKE_CXX_FLAGS={FLAGS}", f"-DPython_EXECUTABLE={sys.executable}"]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "CXX": os.environ.get("CXX", "g++"),
    }
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], env=environment, check=True)
    return folder / "_native.so"


def _preloaded() -> dict[str, str]:
    """The environment of a process whose Python knows nothing of sanitizers."""
    compiler = os.environ.get("CXX", "g++")
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):  # exceptions pass through both
        found = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        libraries.append(found)
    return SANITIZERS | {"LD_PRELOAD": " ".join(libraries)}


if __name__ == "__main__":
    sys.exit(main())
