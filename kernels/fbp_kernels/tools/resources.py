"""What the compiler makes of every kernel of the table, without a GPU: `python -m fbp_kernels.tools.resources`.

Compiles each kernel ahead of time for the devices named, as its launchers would launch it, and prints registers,
spills, shared memory, how many programs a multiprocessor holds, and which instructions do the work.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..triton import interpreted, tuning

DEVICES = {"A100": "sm80", "H100": "sm90", "H200": "sm90", "B200": "sm100"}


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has, in bytes where it is memory.

    Attributes:
        shared: of all its programs.
        shared_of_program: of one; for sm80, what its smaller relatives (8.6, 8.9, 12.x) allow.
        warps: of all its programs.
    """

    shared: int
    shared_of_program: int
    warps: int = 64


LIMITS = {
    "sm80": Limits(164 << 10, 99 << 10),
    "sm90": Limits(228 << 10, 227 << 10),
    "sm100": Limits(228 << 10, 227 << 10),
}
# The same on all of them.
_REGISTERS, _PROGRAMS, _TENSOR_COLUMNS = 65536, 32, 512
_REGISTER_UNIT, _SHARED_UNIT, _SHARED_RESERVED = 256, 128, 1024


@dataclass(frozen=True)
class Row:
    """A kernel in one configuration; of its variants (with and without bias, dropout, ...) the largest figures.

    Attributes:
        architecture: it was compiled for.
        module: that it is in.
        kernel: its name in the table.
        function: its name in the source.
        dtype: class.
        size: class.
        blocks: its compile-time sizes.
        stages: of the software pipeline.
        registers: of a thread.
        spilled: bytes of a thread that do not fit its registers, stored and loaded.
        shared: memory of a program, bytes.
        warps: of a program.
        resident: programs that a multiprocessor holds at a time.
        products: what multiplies matrices: "wgmma", "mma.sync", "tcgen05" or "fma".
        copies: how tiles reach shared memory: "cp.async".
        load: bytes that the widest load from global memory moves for a thread.
        variants: how many there are.
        problems: what is wrong.
    """

    architecture: str
    module: str
    kernel: str
    function: str
    dtype: str
    size: str
    blocks: dict[str, int] = field(default_factory=dict)
    stages: int = 0
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    warps: int = 0
    resident: int = 0
    products: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    load: int = 0
    variants: int = 1
    problems: tuple[str, ...] = ()


def architecture_of(device: str) -> str:
    """The architecture of a device's name, such as "H100", "NVIDIA H100 80GB HBM3" or "sm90".

    Raises:
        ValueError: there is no such device.
    """
    if device in LIMITS:
        return device
    for name, architecture in DEVICES.items():
        if re.search(rf"\b{name}\b", device, re.IGNORECASE):
            return architecture
    raise ValueError(f"device is {device!r}, expected one of {', '.join([*DEVICES, *LIMITS])}")


def resident_programs(
    architecture: str, registers: int, threads: int, shared: int, tensor_columns: int = 0
) -> int:
    """How many programs a multiprocessor holds at a time.

    Args:
        architecture: of the device.
        registers: of a thread.
        threads: of a program.
        shared: memory of a program, bytes.
        tensor_columns: of tensor memory that a program takes.
    """
    limits = LIMITS[architecture]
    warps = -(-threads // 32)
    of_warp = _rounded(registers * 32, _REGISTER_UNIT)
    of_program = _rounded(shared + _SHARED_RESERVED, _SHARED_UNIT)
    bounds = [_PROGRAMS, limits.warps // warps, limits.shared // of_program]
    if of_warp:
        bounds.append(_REGISTERS // of_warp // warps)
    if tensor_columns:
        bounds.append(_TENSOR_COLUMNS // tensor_columns)
    return min(bounds)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# Matrix products in Triton's own representation: sizes and dtypes of both operands.
_DOT = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x(\w+)[^>]*> \* tensor<(\d+)x(\d+)x(\w+)[^>]*>")
_ROUNDED = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\.\S*tf32")
_PRODUCTS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma.sync": "mma.sync"}


def products(ptx: str, ttir: str) -> tuple[str, ...]:
    """What multiplies matrices: kinds of tensor-core instructions, or "fma" where there are products without any."""
    found = tuple(name for name, instruction in _PRODUCTS.items() if instruction in ptx)
    return found or (("fma",) if "tt.dot" in ttir else ())


def copies(ptx: str) -> tuple[str, ...]:
    """How tiles get into shared memory past the registers."""
    return ("cp.async",) if re.search(r"cp\.async\.c[ag]", ptx) else ()


def widest_load(ptx: str) -> int:
    """Bytes that one load from global memory moves for a thread, at most."""
    widest = 0
    for words in re.findall(r"\bld\.global\.(\S+)", ptx):
        parts = words.split(".")
        bits = re.fullmatch(r"[bfsu]f?(\d+)", parts[-1])
        count = next((int(p[1:]) for p in parts if re.fullmatch(r"v\d", p)), 1)
        widest = max(widest, count * int(bits[1]) // 8 if bits else 0)
    asynchronous = re.findall(r"\bcp\.async\.c[ag]\.\S+ \[[^\]]*\], \[[^\]]*\], (\w+)", ptx)
    return max([widest, *(int(size, 0) for size in asynchronous)])


def wrong_products(architecture: str, dtype: str, warps: int, ptx: str, ttir: str) -> str:
    """What is wrong with how a kernel multiplies matrices, or "".

    In half precision and TF32 that is for the tensor cores. In float32 it is not, unless three products stand for one:
    Triton has lowered exact products to TF32 (3.7 and 3.9, for sm_100, a result of 16 columns). On sm_90 it is for
    wgmma, where a tile has the rows and the program the warps that wgmma takes; smaller ones are left to mma.sync.
    """
    if "tt.dot" not in ttir:
        return ""
    if dtype == "float32":
        rounds = _ROUNDED.search(ptx) and "tf32x3" not in ttir
        return "rounds the operands of float32 products to TF32" if rounds else ""
    found = products(ptx, ttir)
    if found == ("fma",):
        return f"multiplies {dtype} matrices without tensor cores"
    large = any(
        int(m) >= 64 and int(k) >= 16 and int(n) >= 8 and {a, b} <= {"bf16", "f16"}
        for m, k, a, _, n, b in _DOT.findall(ttir)
    )
    if architecture == "sm90" and large and warps >= 4 and "wgmma" not in found:
        return f"has tiles for wgmma, but multiplies with {', '.join(found)}"
    return ""


# A wgmma that is not waited for at once, and its left operand where that is a tensor, so in registers.
_IN_FLIGHT = re.compile(
    r"ttng\.warp_group_dot .*\{[^}]*isAsync = true[^}]*\} : tensor<[^>]*#ttg\.dot_op"
)


def overwritten(ttgir: str) -> str:
    """Which registers may be overwritten while a product still reads them, or "".

    The left operand of a wgmma in registers, where a loop does not wait for the product before it loads the next one:
    ptxas before 13.3 makes one register of both (Triton 3.6 to 3.9 bring 12.8 and 12.9 for sm_90).
    """
    in_flight = "left operands in registers are overwritten while wgmma reads them"
    return in_flight if _IN_FLIGHT.search(ttgir) else ""


def _usage(kernel: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills."""
    from triton.backends.nvidia import compiler

    tools = Path(compiler.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        text = _output(str(tools / "cuobjdump"), "--dump-resource-usage", str(cubin))
        registers, stack, local = used(text)
        if not stack and not local:
            return registers, 0
        # A stack may hold other things than spills: the assembler tells them apart.
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(kernel.asm["ptx"])
        target = re.search(r"^\.target\s+(\w+)", kernel.asm["ptx"], re.MULTILINE)
        assert target
        capability = int(re.sub(r"\D", "", target[1]))
        assembler = compiler.get_ptxas(capability).path
        command = [assembler, "-v", f"--gpu-name={target[1]}", str(ptx), "-o", os.devnull]
        return registers, spilled(_output(*command))


def used(text: str) -> tuple[int, int, int]:
    """Registers, bytes of stack and bytes of local memory of a thread, from what cuobjdump says."""
    values = re.findall(r"\bREG:(\d+) STACK:(\d+)\b.*?\bLOCAL:(\d+)", text)
    if len(values) != 1:
        raise ValueError(f"expected the resource usage of one kernel, got: {text.strip()}")
    registers, stack, local = map(int, values[0])
    return registers, stack, local


def spilled(text: str) -> int:
    """Bytes of a thread that are spilled, from what ptxas says: stored and loaded."""
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
    if not found:
        raise ValueError(f"expected the assembler to tell of spills, got: {text.strip()}")
    return sum(map(int, found))


def _output(*command: str) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout.strip()}")
    return done.stdout


def rows(module: str, size: str, dtype: str, architecture: str) -> list[Row]:
    """What the compiler makes of a module's samples, a row for each kernel and configuration."""
    from ..triton import ahead

    found: dict[tuple[str, ...], Row] = {}
    seen: set[str] = set()
    for made in ahead.compile_samples(module, size, dtype, ahead.CAPABILITIES[architecture]):
        if made.kernel is not None:
            if made.kernel.hash in seen:
                continue
            seen.add(made.kernel.hash)
        row = _row(made, module, size, dtype, architecture)
        name = (row.kernel, row.function, row.dtype, row.size)
        found[name] = _merged(found[name], row) if name in found else row
    return list(found.values())


def _row(made: Any, module: str, size: str, dtype: str, architecture: str) -> Row:
    key, config = made.key, made.config
    row = Row(
        architecture,
        module.rpartition(".")[2],
        key.kernel if key else "",
        made.function,
        key.dtype if key else dtype,
        key.size if key else size,
        config.blocks if config else {},
        config.stages if config else 0,
        warps=config.warps if config else 0,
    )
    if made.kernel is None:
        return replace(row, problems=(made.error,))
    ptx, ttir, metadata = made.kernel.asm["ptx"], made.kernel.asm["ttir"], made.kernel.metadata
    registers, spills = _usage(made.kernel)
    # More than the configuration's warps where some are specialised.
    entry = re.search(r"^\s*\.(?:req|max)ntid\s+(\d+)", ptx, re.MULTILINE)
    threads = int(entry[1]) if entry else 32 * row.warps
    columns = getattr(metadata, "tmem_size", None) or 0
    limit = LIMITS[architecture].shared_of_program
    wrong = [
        f"spills {spills} bytes" if spills else "",
        f"wants {metadata.shared} bytes of shared memory, there are {limit}"
        if metadata.shared > limit
        else "",
        f"wants {columns} columns of tensor memory, there are {_TENSOR_COLUMNS}"
        if columns > _TENSOR_COLUMNS
        else "",
        wrong_products(architecture, row.dtype, row.warps, ptx, ttir),
        overwritten(made.kernel.asm["ttgir"]),
        "" if metadata.enable_fp_fusion else "multiplies and adds in two roundings",
        "" if key else "was launched without a choice of a configuration",
    ]
    return replace(
        row,
        registers=registers,
        spilled=spills,
        shared=metadata.shared,
        resident=resident_programs(architecture, registers, threads, metadata.shared, columns),
        products=products(ptx, ttir),
        copies=copies(ptx),
        load=widest_load(ptx),
        problems=tuple(filter(None, wrong)),
    )


def _merged(first: Row, second: Row) -> Row:
    """Two variants of a kernel: the larger figures, the instructions of both."""
    largest: dict[str, Any] = {
        name: max(getattr(first, name), getattr(second, name))
        for name in ("registers", "spilled", "shared", "load")
    }
    both: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(first, name), *getattr(second, name))))
        for name in ("products", "copies", "problems")
    }
    compiled = [row.resident for row in (first, second) if row.resident]
    return replace(
        first,
        **largest,
        **both,
        resident=min(compiled, default=0),
        variants=first.variants + second.variants,
    )


def unreached(architecture: str, found: Iterable[Row], modules: Sequence[str]) -> list[Row]:
    """Entries of the table that no sample comes to, each a row with that problem.

    Args:
        architecture: of the table.
        found: rows of all samples of the modules.
        modules: whose kernels are looked at; where these are all, kernels that no module knows are found too.
    """
    reached = {(r.kernel, r.dtype, r.size) for r in found if r.architecture == architecture}
    known = {
        kernel: module
        for module in modules
        for kernel in importlib.import_module(module).CANDIDATES
    }
    everything = set(modules) == set(tuning.MODULES)
    return [
        Row(
            architecture,
            known.get(key.kernel, "").rpartition(".")[2],
            key.kernel,
            "",
            key.dtype,
            key.size,
            config.blocks,
            config.stages,
            warps=config.warps,
            problems=("no sample comes to it",),
        )
        for key, config in tuning.entries(architecture).items()
        if (everything or key.kernel in known) and (key.kernel, key.dtype, key.size) not in reached
    ]


def collect(architectures: Sequence[str], modules: Sequence[str], processes: int) -> list[Row]:
    """The rows of all classes of size and dtype, in order of the table."""
    jobs = list(product(modules, tuning.SIZES, tuning.DTYPES, architectures))
    if processes == 1:
        lists = [rows(*job) for job in jobs]
    else:
        # A process each that starts afresh: Triton's compiler is not shared between threads.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            lists = list(pool.map(partial(_apply, rows), jobs))
    found: dict[tuple[str, ...], Row] = {}
    for row in (row for some in lists for row in some):
        # One dtype may serve for another: a kernel without products has no TF32.
        found.setdefault((row.architecture, row.kernel, row.function, row.dtype, row.size), row)
    result = list(found.values())
    for architecture in architectures:
        result += unreached(architecture, result, modules)
    orders = {"architecture": [*LIMITS], "dtype": [*tuning.DTYPES], "size": [*tuning.SIZES]}

    def place(row: Row) -> tuple[Any, ...]:
        rank = {n: order.index(getattr(row, n)) for n, order in orders.items()}
        return (
            rank["architecture"],
            row.module,
            row.kernel,
            row.function,
            rank["dtype"],
            rank["size"],
        )

    return sorted(result, key=place)


def _apply(function: Any, arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


HEADER = (
    "kernel", "dtype", "size", "blocks", "warps", "stages", "registers", "spilled", "shared", "resident",
    "products", "copies", "load", "problems",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is printed, in the order of `HEADER`."""
    return (
        row.kernel or row.function,
        row.dtype,
        row.size,
        " ".join(f"{block}={size}" for block, size in row.blocks.items()),
        *map(str, (row.warps, row.stages, row.registers, row.spilled, row.shared, row.resident)),
        " ".join(row.products) or "-",
        " ".join(row.copies) or "-",
        str(row.load),
        "; ".join(row.problems),
    )


def plain(found: Sequence[Row]) -> str:
    """The rows as text, a table for each architecture."""
    parts = []
    for architecture in dict.fromkeys(row.architecture for row in found):
        table = [HEADER, *(cells(row) for row in found if row.architecture == architecture)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)
        parts.append("\n".join([f"{architecture} ({_devices(architecture)})", *lines]))
    return "\n\n".join(parts)


def page(found: Sequence[Row], version: str) -> str:
    """The rows as a page of the documentation."""
    lines = [
        "# What the compiler makes of the kernels",
        "",
        f"Written by `python -m fbp_kernels.tools.resources --markdown` with Triton {version}; other versions differ",
        "a little. Every kernel of the committed table, compiled ahead of time: no GPU was needed. Of its variants",
        "(with and without bias, dropout, lengths) the largest figures are shown.",
        "",
        "- registers: of a thread; spilled: bytes of a thread that do not fit them; shared: bytes of a program;",
        "- resident: programs that a multiprocessor holds at a time, by registers, threads and shared memory;",
        "- products: what multiplies matrices; copies: how tiles reach shared memory past the registers;",
        "- load: bytes that the widest load from global memory moves for a thread.",
    ]
    for architecture in dict.fromkeys(row.architecture for row in found):
        lines += ["", f"## {architecture}: {_devices(architecture)}", ""]
        lines.append("| " + " | ".join(HEADER) + " |")
        lines.append("|" + "---|" * len(HEADER))
        rest = (row for row in found if row.architecture == architecture)
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rest]
    return "\n".join(lines) + "\n"


def _devices(architecture: str) -> str:
    names = [name for name, own in DEVICES.items() if own == architecture]
    also = ["8.x and 12.x with 99 KB of shared memory"] if architecture == "sm80" else []
    return ", ".join([*names, *also])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fbp_kernels.tools.resources", description=__doc__
    )
    parser.add_argument(
        "devices",
        nargs="*",
        metavar="DEVICE",
        help=f"{', '.join([*DEVICES, *LIMITS])}; default: all",
    )
    parser.add_argument(
        "--modules", nargs="+", help="of the Triton backend, such as bilinear; default: all"
    )
    parser.add_argument("--json", type=Path, help="write the rows to a file")
    parser.add_argument("--markdown", type=Path, help="write them as a page of documentation")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 if a kernel does not compile, spills, does not fit, lacks tensor-core instructions,"
        " or if no sample comes to an entry of the table",
    )
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 8))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if interpreted():
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    try:
        import triton
    except ImportError:
        parser.error("Triton is not installed")
    try:
        asked = options.devices or list(LIMITS)
        architectures = list(dict.fromkeys(map(architecture_of, asked)))
    except ValueError as error:
        parser.error(str(error))
    by_name = {name.rpartition(".")[2]: name for name in tuning.MODULES}
    unknown = set(options.modules or ()) - set(by_name)
    if unknown:
        parser.error(f"there is no module {', '.join(unknown)}, expected {', '.join(by_name)}")
    modules = [by_name[name] for name in options.modules or by_name]
    found = collect(architectures, modules, options.processes)
    print(plain(found))
    if options.json:
        record = {"triton": triton.__version__, "rows": [asdict(row) for row in found]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(page(found, triton.__version__))
    wrong = [row for row in found if row.problems]
    print(
        f"\n{len(found)} kernels compiled with Triton {triton.__version__}, {len(wrong)} with problems"
    )
    for row in wrong:
        print(f"  {row.architecture} {' '.join(cells(row)[:3])}: {'; '.join(row.problems)}")
    return 1 if options.check and (wrong or not found) else 0


if __name__ == "__main__":
    sys.exit(main())
