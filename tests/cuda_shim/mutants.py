"""Plants a mistake at a time in the bilinear forward by wgmma, and shows that a test fails.

`make mutants`, or `python tests/cuda_shim/mutants.py [NAME ...]` for some of them, works on a copy of the sources and
the tests in a temporary folder, where the shim is built anew for each mistake.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = "tests/fbp_kernels/cuda/test_hopper.py"


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        name: what is wrong.
        source: the file in `kernels/csrc/cuda`.
        right: what stands there, once.
        wrong: what is to stand there.
    """

    name: str
    source: str
    right: str
    wrong: str


DESCRIPTOR, RING, TILES = "matrix_descriptor.h", "wgmma_ring.h", "wgmma_tiles.h"
EPILOGUE, KERNEL = "wgmma_epilogue.h", "bilinear_forward_wgmma.cu"

MUTANTS = (
    # Descriptors and layouts.
    Mutant(
        "descriptor: next box of columns",
        DESCRIPTOR,
        "{lines, box, kPatternBytes}",
        "{lines, box / 2, kPatternBytes}",
    ),
    Mutant(
        "descriptor: next pattern of rows",
        DESCRIPTOR,
        "{lines, 0, kPatternBytes}",
        "{lines, 0, kLineBytes}",
    ),
    Mutant("descriptor: swizzle of 64 bytes", DESCRIPTOR, "kSwizzle128 = 1", "kSwizzle128 = 2"),
    Mutant(
        "descriptor: step along the depth of rows",
        RING,
        "kRowsStep = kWgmmaDepth * 2;",
        "kRowsStep = kWgmmaDepth * 4;",
    ),
    Mutant(
        "descriptor: step along the depth of columns",
        RING,
        "kColumnsStep = kWgmmaDepth * kLineBytes;",
        "kColumnsStep = kWgmmaDepth * kLineBytes / 2;",
    ),
    Mutant(
        "descriptor: both warpgroups take the same rows",
        RING,
        "depth_contiguous(ring.stage[0].rows + warpgroup * kRowsBytes)",
        "depth_contiguous(ring.stage[0].rows)",
    ),
    # Waiting, and saying that one is done.
    Mutant(
        "no wait for a stage to be full",
        RING,
        "    mbarrier_wait(&ring.full[turn.stage], turn.parity);\n",
        "",
    ),
    Mutant(
        "no wait for a stage to be empty",
        RING,
        "    mbarrier_wait(&ring.empty[turn.stage], turn.parity ^ 1);\n",
        "",
    ),
    Mutant(
        "parity of a full stage",
        RING,
        "&ring.full[turn.stage], turn.parity)",
        "&ring.full[turn.stage], turn.parity ^ 1)",
    ),
    Mutant(
        "parity of an empty stage",
        RING,
        "&ring.empty[turn.stage], turn.parity ^ 1)",
        "&ring.empty[turn.stage], turn.parity)",
    ),
    Mutant("parity never changes", RING, "    parity ^= 1;\n", ""),
    Mutant(
        "a stage is given back while it is read",
        RING,
        "    if (before >= 0) release(before);\n    before = turn.stage;",
        "    release(turn.stage);",
    ),
    Mutant(
        "no wait for the products of the step before", RING, "    wgmma_wait_for_earlier();\n", ""
    ),
    Mutant("no wait for the last products", RING, "  wgmma_wait_for_all(sums);\n", ""),
    Mutant("no fence before products", RING, "    wgmma_fence();\n", ""),
    Mutant("products are not committed", RING, "    wgmma_commit();\n", ""),
    Mutant(
        "the last stage is not given back",
        RING,
        "  wgmma_wait_for_all(sums);\n  if (before >= 0) release(before);\n",
        "  wgmma_wait_for_all(sums);\n",
    ),
    Mutant(
        "too few bytes are expected",
        RING,
        "mbarrier_arrive_expecting(full, sizeof(RingStage))",
        "mbarrier_arrive_expecting(full, sizeof(RingStage) - kBoxBytes)",
    ),
    Mutant(
        "too many bytes are expected",
        RING,
        "mbarrier_arrive_expecting(full, sizeof(RingStage))",
        "mbarrier_arrive_expecting(full, sizeof(RingStage) + kBoxBytes)",
    ),
    Mutant(
        "one reader is not waited for",
        RING,
        "&ring.empty[i], kConsumerWarps)",
        "&ring.empty[i], kConsumerWarps - 1)",
    ),
    Mutant("barriers are not made known to copies", RING, "  mbarrier_init_fence();\n", ""),
    Mutant(
        "a ring of one stage too many",
        RING,
        "if (++stage < kRingStages) return;",
        "if (++stage <= kRingStages) return;",
    ),
    # What is copied and multiplied.
    Mutant(
        "depth of a copy",
        RING,
        "const int depth = step * kRingDepth;",
        "const int depth = step * kRingDepth / 2;",
    ),
    Mutant(
        "all boxes go to one place",
        RING,
        "bulk_copy(stage.columns[i],",
        "bulk_copy(stage.columns[i / 2],",
    ),
    Mutant(
        "boxes side by side, whatever outputs they hold",
        TILES,
        "box * box_columns() +",
        "box * kBoxColumns +",
    ),
    Mutant("the trunk of a copy", TILES, "result.trunk = h;", "result.trunk = 0;"),
    Mutant(
        "box of half as many rows",
        KERNEL,
        "input_of(problem, i, side), 2, kRingRows)",
        "input_of(problem, i, side), 2, kRingRows / 2)",
    ),
    Mutant("sums begin anew in every step", RING, "step + i > 0", "i > 0"),
    Mutant("more registers than a block has", KERNEL, "take_registers<232>", "take_registers<240>"),
    # Products and sums.
    Mutant(
        "sums of squares of one half of a row, twice",
        KERNEL,
        "(thread % 2 * (kChunks / 2) + i)",
        "i",
    ),
    Mutant(
        "rows that do not count",
        EPILOGUE,
        "const bool counts = (counted",
        "const bool counts = true || (counted",
    ),
    Mutant(
        "lanes keep what they should hand on", EPILOGUE, "  swap(v1, v3, (lane & 2) != 0, 2);\n", ""
    ),
    Mutant(
        "outputs are written before all lanes have added",
        EPILOGUE,
        "void store(const ForwardProblem& problem) const {\n    __syncwarp();\n",
        "void store(const ForwardProblem& problem) const {\n",
    ),
    Mutant(
        "sums are cleared before all lanes have read",
        EPILOGUE,
        "    __syncwarp();  // before the sums are those of the next tile\n",
        "",
    ),
    Mutant(
        "rows past the batch are written", EPILOGUE, "      if (row_ + r >= problem.B) break;\n", ""
    ),
    Mutant("random words of other rows", EPILOGUE, "(others >> place & 1)", "(others >> i & 1)"),
)


def copied(folder: Path) -> None:
    """Copies what the shim and its tests are made of."""
    for name in ("kernels/csrc", "kernels/cmake", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    # Less is spent on the compiler, which is most of what a mutant takes.
    settings = folder / "tests" / "cuda_shim" / "CMakeLists.txt"
    settings.write_text(settings.read_text().replace("-O2", "-O1"))


def tested(folder: Path) -> tuple[bool, str]:
    """Whether all tests pass there, and the first line that says why not."""
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        TESTS,
    )
    environment = os.environ | {"PYTHONPATH": os.fspath(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    reasons = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
    return done.returncode == 0, reasons[0][1:].strip() if reasons else done.stdout[-200:]


def main(names: list[str]) -> int:
    """Tries the mutants named, or all, and returns how many no test finds."""
    chosen = [m for m in MUTANTS if not names or m.name in names]
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copied(folder)
        passed, why = tested(folder)
        if not passed:
            raise SystemExit(f"the tests fail without a mistake: {why}")
        for mutant in chosen:
            path, start = folder / "kernels" / "csrc" / "cuda" / mutant.source, time.monotonic()
            text = path.read_text()
            if text.count(mutant.right) != 1:
                raise SystemExit(f"{mutant.name}: {mutant.source} has not once {mutant.right!r}")
            path.write_text(text.replace(mutant.right, mutant.wrong))
            passed, why = tested(folder)
            path.write_text(text)
            survivors += passed
            verdict = "NOT FOUND" if passed else f"found: {why[:150]}"
            print(f"{mutant.name} ({time.monotonic() - start:.0f} s): {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} found")
    return survivors


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
