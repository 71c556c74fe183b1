"""What nvcc makes of every CUDA C++ kernel, without a GPU: `python -m fbp_kernels.tools.ptxas`.

Compiles the sources in `kernels/csrc/cuda` for the architectures named, warnings as errors, and prints registers,
spills, local, static and dynamic shared memory of each kernel. It needs the repository and nvcc, nothing else of CUDA.
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from .resources import resident_programs

SOURCES = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = {"sm_80": "sm80", "sm_90a": "sm90", "sm_100": "sm100"}  # as `resources` calls them

_REGISTERS = 65536  # of a multiprocessor
_STATIC_SHARED = 48 << 10  # bytes that a kernel may declare; more has to be dynamic
# Bytes of shared memory, static and dynamic, that a block may have.
_SHARED = {"sm_80": 163 << 10, "sm_90a": 227 << 10, "sm_100": 227 << 10}
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Bounds:
    """What a kernel's launch bounds promise.

    Attributes:
        threads: of a block, at most.
        blocks: that a multiprocessor is to hold, at least; 0 where nothing is said.
    """

    threads: int = _MOST_THREADS
    blocks: int = 0


@dataclass(frozen=True)
class Usage:
    """What the assembler says of a kernel, for one thread or, of `shared`, one block.

    Attributes:
        kernel: its mangled name.
        registers: of a thread.
        stored: bytes of registers that are spilled.
        loaded: bytes that are loaded back.
        local: bytes of the stack, spills among them.
        shared: bytes of static shared memory.
    """

    kernel: str
    registers: int
    stored: int
    loaded: int
    local: int
    shared: int


@dataclass(frozen=True)
class Row:
    """A kernel compiled for one architecture.

    Attributes:
        architecture: as nvcc names it.
        source: the file's name.
        kernel: the kernel's.
        bounds: of a launch.
        usage: what it takes.
        dynamic: the most bytes of dynamic shared memory that a launch of it asks for, on a device of the architecture
            where that depends on the device.
        problems: what is wrong with it.
    """

    architecture: str
    source: str
    kernel: str
    bounds: Bounds
    usage: Usage
    dynamic: int
    problems: tuple[str, ...]


_USAGE = re.compile(
    r"Function properties for (?P<kernel>\S+)\s+"
    r"(?P<local>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill loads\s+"
    r"ptxas info\s*: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)
_STATIC = re.compile(r"(\d+) bytes smem")
_ENTRY = re.compile(r"\.entry\s+(\S+)\s*\((?:.*?)\)(?P<directives>.*?)\{", re.DOTALL)


# What `launch` and `launch_fitted` in launch.h leave word of.
_ASKED = re.compile(r"\.global\s[^;=]*\s(\S*(?:dynamic|fitted)_shared\S*)(?:\s*=\s*(\d+))?;")
_ASKED_BY = re.compile(
    r"(dynamic|fitted)_shared<&?\(?(?P<kernel>.*?)\)?(, (?P<most>\d+))?, \d+ul>$"
)


def usages(text: str) -> list[Usage]:
    """The kernels that `ptxas -v` tells of, in its order.

    Raises:
        ValueError: it tells of more kernels than can be read.
    """
    found = []
    for match in _USAGE.finditer(text):
        shared = _STATIC.search(match["rest"])
        registers, stored, loaded, local = (
            int(match[name]) for name in ("registers", "stored", "loaded", "local")
        )
        of_block = int(shared[1]) if shared else 0
        found.append(Usage(match["kernel"], registers, stored, loaded, local, of_block))
    compiled = text.count("Compiling entry function")
    if compiled != len(found):
        raise ValueError(f"ptxas compiled {compiled} kernels, {len(found)} could be read:\n{text}")
    return found


def bounds(ptx: str) -> dict[str, Bounds]:
    """The launch bounds of the kernels of a PTX text, by mangled name."""
    found = {}
    for match in _ENTRY.finditer(ptx):
        threads = re.search(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", match["directives"])
        blocks = re.search(r"\.minnctapersm\s+(\d+)", match["directives"])
        most = 1
        for size in threads.groups() if threads else (_MOST_THREADS,):
            most *= int(size or 1)
        found[match[1]] = Bounds(most, int(blocks[1]) if blocks else 0)
    return found


def asked(ptx: str, architecture: str) -> dict[str, int]:
    """The most dynamic shared memory that launches of a kernel ask for, by mangled name, of a PTX text.

    Raises:
        ValueError: what a launch left word of belongs to no kernel, or says nothing of the architecture's devices.
    """
    kernels = [match[1] for match in _ENTRY.finditer(ptx)]
    words = [(match[1], int(match[2] or 0)) for match in _ASKED.finditer(ptx)]
    if not words:
        return {}
    names = demangled(kernels)
    found: dict[str, list[int]] = {}
    for text, (variable, size) in zip(demangled([name for name, _ in words]), words, strict=True):
        match = _ASKED_BY.search(text)
        if match is None or match["kernel"] not in names:
            raise ValueError(f"{variable} belongs to none of the kernels: {text}")
        sizes = found.setdefault(kernels[names.index(match["kernel"])], [])
        if match["most"] in (None, str(_SHARED[architecture])):
            sizes.append(size)
    for kernel, sizes in found.items():
        if not sizes:
            raise ValueError(
                f"launches of {kernel} fit the device, but do not say what they ask for where it has"
                f" {_SHARED[architecture]} bytes"
            )
    return {kernel: max(sizes) for kernel, sizes in found.items()}


# What the assembler says of products of warpgroups that it makes wait for one another, and of registers that it does
# not let warpgroups hand on. It calls that information, but it costs most of a kernel's speed.
_NOTE = re.compile(
    r"\((C75\d\d)\)\s*(?P<said>[^\n]*)|(?P<ignored>[^\n]*setmaxnreg[^\n]*ignored[^\n]*)"
)
# The lowest 12 bits of the instruction, of 16 bytes: the left operand in shared memory, or in registers.
_HGMMA = (0x9F0, 0xDF0)


def notes(text: str) -> list[str]:
    """What the assembler has to say against its own code for Hopper."""
    return [(match["said"] or match["ignored"]).strip() for match in _NOTE.finditer(text)]


def instructions(cubin: bytes, kernel: str, opcodes: Sequence[int]) -> int:
    """How many instructions of some opcodes a kernel has in an object of the assembler.

    Raises:
        ValueError: it has no such kernel.
    """
    start, entry, number, names = (
        struct.unpack_from(form, cubin, at)[0]
        for form, at in (("<Q", 0x28), ("<H", 0x3A), ("<H", 0x3C), ("<H", 0x3E))
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + i * entry) for i in range(number)]
    wanted = f".text.{kernel}".encode()
    for name, _, _, _, offset, size in sections:
        at = sections[names][4] + name
        if cubin[at : cubin.index(b"\0", at)] == wanted:
            words = struct.iter_unpack("<QQ", cubin[offset : offset + size])
            return sum(word & 0xFFF in opcodes for word, _ in words)
    raise ValueError(f"the object has no kernel {kernel}")


def body(ptx: str, kernel: str) -> str:
    """What a kernel of a PTX text does."""
    begin = ptx.index("{", ptx.index(f".entry {kernel}("))
    end = ptx.find(".entry ", begin)
    return ptx[begin + 1 : end if end >= 0 else len(ptx)]


def is_left_out(ptx: str, kernel: str) -> bool:
    """Whether a kernel stops at once: it is there for another architecture, and not launched on this one."""
    return re.match(r"(\s|//[^\n]*\n)*trap;", body(ptx, kernel)) is not None


def demangled(names: Sequence[str]) -> list[str]:
    """C++ names as sources have them, without the namespace that nvcc has for each source."""
    text = _output("c++filt", *names) if names else ""
    return re.sub(r"_INTERNAL_\w+::", "", text).splitlines()


def problems(
    usage: Usage, bound: Bounds, dynamic: int = 0, architecture: str = "sm_80"
) -> tuple[str, ...]:
    """What is wrong with a kernel; `dynamic` is the shared memory that launches ask for."""
    wrong = []
    if usage.stored or usage.loaded:
        wrong.append(f"spills {usage.stored} bytes, loads {usage.loaded}")
    elif usage.local:
        wrong.append(f"keeps {usage.local} bytes in local memory")
    if usage.registers * bound.threads * max(bound.blocks, 1) > _REGISTERS:
        wrong.append(
            f"{usage.registers} registers of {bound.threads} threads are more than a multiprocessor has"
        )
    if usage.shared > _STATIC_SHARED:
        wrong.append(
            f"has {usage.shared} bytes of static shared memory, at most {_STATIC_SHARED} may be"
        )
    if usage.shared + dynamic > _SHARED[architecture]:
        wrong.append(
            f"{usage.shared} bytes of static and {dynamic} of dynamic shared memory are more than the"
            f" {_SHARED[architecture]} of a block"
        )
    return tuple(wrong)


def short_name(demangled: str) -> str:
    """A kernel's name as its source has it: without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|fbp::cuda::|fbp::", "", demangled)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:i]
    return name


def compile_source(nvcc: str, source: Path, architecture: str) -> list[Row]:
    """A source's kernels.

    Raises:
        RuntimeError: it does not compile, or not without a warning.
    """
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernels.ptx")
        options = ("-std=c++17", f"-arch={architecture}", f"-I{SOURCES}")
        _output(nvcc, *options, "-Werror=all-warnings", "-ptx", str(source), "-o", str(ptx))
        assembler = str(Path(nvcc).resolve().with_name("ptxas"))
        if not Path(assembler).exists():
            assembler = "ptxas"
        cubin = Path(folder, "kernels.cubin")
        arguments = ("-v", "-Werror", f"-arch={architecture}", str(ptx), "-o", str(cubin))
        said = _output(assembler, *arguments)
        found, against = usages(said), notes(said)
        text, made = ptx.read_text(), cubin.read_bytes()
    bound, dynamic = bounds(text), asked(text, architecture)

    def wrong(usage: Usage) -> tuple[str, ...]:
        left_out = is_left_out(text, usage.kernel)
        asks = 0 if left_out else dynamic.get(usage.kernel, 0)
        of_it = [note for note in against if usage.kernel in note or "'" not in note]
        products = "wgmma.mma_async" in body(text, usage.kernel)
        if products and not instructions(made, usage.kernel, _HGMMA):
            of_it.append("has no HGMMA")
        return (*problems(usage, bound[usage.kernel], asks, architecture), *of_it)

    names = demangled([usage.kernel for usage in found])
    return [
        Row(
            architecture,
            source.name,
            short_name(name),
            bound[usage.kernel],
            usage,
            dynamic.get(usage.kernel, 0),
            wrong(usage),
        )
        for usage, name in zip(found, names, strict=True)
    ]


def _output(*command: str) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout.strip()}")
    return done.stdout


def collect(
    nvcc: str, sources: Iterable[Path], architectures: Iterable[str], jobs: int
) -> list[Row]:
    """The kernels of all sources, by architecture, source and name."""
    # The longest first, so that the last to end is short.
    work = sorted(product(sources, architectures), key=lambda job: -job[0].stat().st_size)
    with ThreadPoolExecutor(jobs) as pool:
        lists = list(pool.map(lambda job: compile_source(nvcc, *job), work))
    order = list(ARCHITECTURES)
    return sorted(
        (row for some in lists for row in some),
        key=lambda row: (order.index(row.architecture), row.source, row.kernel),
    )


HEADER = (
    "kernel", "threads", "registers", "spilled", "local", "static", "dynamic", "resident", "problems",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is printed, in the order of `HEADER`."""
    usage, threads = row.usage, row.bounds.threads
    resident = resident_programs(
        ARCHITECTURES[row.architecture], usage.registers, threads, usage.shared + row.dynamic
    )
    numbers = (
        threads, usage.registers, usage.stored + usage.loaded, usage.local, usage.shared, row.dynamic, resident,
    )  # fmt: skip
    return (row.kernel, *map(str, numbers), "; ".join(row.problems))


def plain(rows: Sequence[Row]) -> str:
    """The rows as text, a table for each architecture."""
    parts = []
    for architecture in dict.fromkeys(row.architecture for row in rows):
        table = [HEADER, *(cells(row) for row in rows if row.architecture == architecture)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)
        parts.append("\n".join([architecture, *lines]))
    return "\n\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fbp_kernels.tools.ptxas", description=__doc__)
    parser.add_argument(
        "architectures",
        nargs="*",
        metavar="ARCHITECTURE",
        help=f"{', '.join(ARCHITECTURES)}; default: all",
    )
    parser.add_argument("--sources", nargs="+", help="such as attention_pool.cu; default: all")
    parser.add_argument("--nvcc", help="the compiler; default: the one on the PATH")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 if a kernel spills or keeps anything in local memory, or asks for more registers or shared"
        " memory, static and dynamic, than there are; what does not compile without a warning fails in any case",
    )
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.architectures) - set(ARCHITECTURES)
    if unknown:
        parser.error(f"architecture is {', '.join(unknown)}, expected {', '.join(ARCHITECTURES)}")
    nvcc = shutil.which(options.nvcc or "nvcc")
    if nvcc is None:
        parser.error(f"there is no {options.nvcc or 'nvcc on the PATH'}")
    there = {path.name: path for path in sorted((SOURCES / "cuda").glob("*.cu"))}
    if not there:
        parser.error(f"there are no sources in {SOURCES / 'cuda'}: run it from the repository")
    unknown = set(options.sources or ()) - set(there)
    if unknown:
        parser.error(f"there is no source {', '.join(unknown)}, expected {', '.join(there)}")
    sources = [there[name] for name in options.sources or there]
    try:
        rows = collect(nvcc, sources, options.architectures or ARCHITECTURES, options.jobs)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(plain(rows))
    wrong = [row for row in rows if row.problems]
    print(f"\n{len(rows)} kernels, {len(wrong)} with problems")
    for row in wrong:
        print(f"  {row.architecture} {row.source} {row.kernel}: {'; '.join(row.problems)}")
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
