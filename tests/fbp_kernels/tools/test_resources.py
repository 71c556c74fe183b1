"""What the compiler makes of the kernels: how it is read, and the command on a small kernel."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fbp_kernels.tools import resources
from fbp_kernels.tools.resources import Row
from fbp_kernels.triton import tuning

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("A100", "sm80"),
        ("h100", "sm90"),
        ("NVIDIA H200", "sm90"),
        ("NVIDIA H100 80GB HBM3", "sm90"),
        ("NVIDIA A100-SXM4-40GB", "sm80"),
        ("B200", "sm100"),
        ("sm100", "sm100"),
    ],
)
def test_a_device_is_known_by_its_name(name: str, architecture: str) -> None:
    assert resources.architecture_of(name) == architecture


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ValueError, match="device is 'A1000', expected one of A100, H100"):
        resources.architecture_of("A1000")


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "columns", "programs"),
    [
        ("sm80", 255, 128, 0, 0, 2),  # 65536 / (256 * 128)
        ("sm80", 33, 256, 0, 0, 6),  # 40 registers after rounding: 65536 / (40 * 256) = 6.4
        ("sm90", 32, 1024, 0, 0, 2),  # 64 warps
        ("sm90", 16, 32, 0, 0, 32),  # the most of all
        ("sm80", 32, 128, 99 << 10, 0, 1),  # 164 / (99 + 1)
        ("sm90", 32, 128, 75 << 10, 0, 3),  # 228 / (75 + 1) = 3
        ("sm90", 32, 128, (75 << 10) + 1, 0, 2),
        ("sm100", 32, 128, 0, 256, 2),  # 512 / 256 columns of tensor memory
    ],
)
def test_residents_follow_from_what_a_program_takes(
    architecture: str, registers: int, threads: int, shared: int, columns: int, programs: int
) -> None:
    found = resources.resident_programs(architecture, registers, threads, shared, columns)
    assert found == programs


@pytest.mark.parametrize(
    ("ptx", "size"),
    [
        ("ld.global.b16 { %rs1 }, [ %rd1 + 0 ];", 2),
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", 16),
        ("ld.global.L1::evict_last.L2::cache_hint.v2.b32 { %r1, %r2 }, [ %rd1 ], %rd9;", 8),
        ("ld.global.nc.f32 %f1, [%rd1];\nld.global.v8.b32 {}, [ %rd2 ];", 32),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", 16),
        ("cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 4;", 4),
        ("st.global.v4.b32 [ %rd1 ], { %r1 };\nld.shared.v4.b32 {}, [ %r1 ];", 0),
    ],
)
def test_the_widest_load_is_read(ptx: str, size: int) -> None:
    assert resources.widest_load(ptx) == size


DOT = "%1 = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<{m}x32x{d}> * tensor<32x64x{d}> -> x"
EXACT = "%1 = tt.dot %a, %b, %c : tensor<64x64xf32> * tensor<64x16xf32> -> tensor<64x16xf32>"
THREE = EXACT.replace("%c", "%c, inputPrecision = tf32x3")
ROUNDS = "rounds the operands of float32 products to TF32"
HALF = DOT.format(m=64, d="bf16")


def test_instructions_are_told_apart() -> None:
    wgmma = "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16"
    assert resources.products(wgmma, HALF) == ("wgmma",)
    assert resources.products("mma.sync.aligned.m16n8k16", HALF) == ("mma.sync",)
    assert resources.products("tcgen05.mma.cta_group::1.kind::f16", HALF) == ("tcgen05",)
    assert resources.products("fma.rn.f32", HALF) == ("fma",)
    assert resources.products("fma.rn.f32", "arith.addf") == ()  # nothing to multiply
    assert resources.copies("cp.async.cg.shared.global [a], [b], 0x10;") == ("cp.async",)
    assert resources.copies("cp.async.wait_group 0;") == ()


@pytest.mark.parametrize(
    ("architecture", "dtype", "warps", "ptx", "ttir", "wrong"),
    [
        ("sm80", "half", 4, "fma.rn.f32", HALF, "multiplies half matrices without tensor cores"),
        ("sm100", "tf32", 4, "fma.rn.f32", HALF, "multiplies tf32 matrices without tensor cores"),
        ("sm80", "float32", 4, "fma.rn.f32", DOT.format(m=64, d="f32"), ""),
        ("sm100", "float32", 4, "tcgen05.mma.cta_group::1.kind::tf32 [%r1]", EXACT, ROUNDS),
        ("sm80", "float32", 4, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", EXACT, ROUNDS),
        ("sm80", "float32", 4, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", THREE, ""),
        ("sm80", "half", 4, "mma.sync", HALF, ""),
        ("sm90", "half", 4, "mma.sync", HALF, "has tiles for wgmma, but multiplies with mma.sync"),
        ("sm90", "half", 4, "wgmma.mma_async", HALF, ""),
        ("sm90", "half", 2, "mma.sync", HALF, ""),
        ("sm90", "half", 4, "mma.sync", DOT.format(m=32, d="bf16"), ""),
        ("sm90", "half", 4, "fma.rn.f32", "arith.mulf", ""),
    ],
)
def test_the_wrong_instructions_are_found(
    architecture: str, dtype: str, warps: int, ptx: str, ttir: str, wrong: str
) -> None:
    assert resources.wrong_products(architecture, dtype, warps, ptx, ttir) == wrong


def test_a_left_operand_in_registers_has_to_be_waited_for() -> None:
    wgmma = (
        "%y = ttng.warp_group_dot %x, %w, %y0 {{{how}inputPrecision = 0 : i32}} : {left} * "
        "!ttg.memdesc<16x128xbf16, #shared1, #smem, 64x128> -> tensor<128x128xf32, #mma>"
    )
    in_registers = "tensor<128x16xbf16, #ttg.dot_op<{opIdx = 0, parent = #mma, kWidth = 2}>>"
    shared = "!ttg.memdesc<128x16xbf16, #shared, #smem>"
    flying = "isAsync = true, "
    assert "overwritten" in resources.overwritten(wgmma.format(how=flying, left=in_registers))
    assert not resources.overwritten(wgmma.format(how="", left=in_registers))
    assert not resources.overwritten(wgmma.format(how=flying, left=shared))


def test_registers_and_spills_are_read() -> None:
    usage = """
Resource usage:
 Common:
  GLOBAL:0
 Function small_product:
  REG:255 STACK:328 SHARED:0 LOCAL:0 CONSTANT[0]:416 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert resources.used(usage) == (255, 328, 0)
    with pytest.raises(ValueError, match="expected the resource usage of one kernel, got: nothing"):
        resources.used("nothing")
    told = "    328 bytes stack frame, 1200 bytes spill stores, 800 bytes spill loads\n"
    assert resources.spilled("ptxas info    : Compiling entry function 'k'\n" + told) == 2000
    with pytest.raises(ValueError, match="tell of spills"):
        resources.spilled("ptxas info")


ROW = Row(
    "sm90", "small", "product", "product", "half", "small", {"BLOCK": 64}, 2,
    100, 0, 4096, 4, 5, ("wgmma",), ("cp.async",), 16,
)  # fmt: skip


def test_of_variants_the_largest_figures_are_shown() -> None:
    biased = replace(
        ROW, registers=120, shared=2048, resident=4, products=("mma.sync",), problems=("spills",)
    )
    both = resources._merged(ROW, biased)
    assert (both.registers, both.shared, both.resident, both.variants) == (120, 4096, 4, 2)
    assert both.products == ("wgmma", "mma.sync")
    assert both.problems == ("spills",)
    broken = replace(ROW, resident=0, problems=("does not compile",))
    assert resources._merged(broken, ROW).resident == 5


def test_a_page_has_a_table_for_each_architecture() -> None:
    page = resources.page(
        [ROW, replace(ROW, architecture="sm80", problems=("spills 8 bytes",))], "3.6"
    )
    assert "with Triton 3.6; other versions differ" in page
    assert "## sm90: H100, H200\n" in page
    row = (
        "| product | half | small | BLOCK=64 | 4 | 2 | 100 | 0 | 4096 | 5 | wgmma | cp.async | 16 |"
    )
    assert f"{row}  |" in page
    assert f"{row} spills 8 bytes |" in page


def test_the_interpreter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        resources.main([])
    assert stopped.value.code == 2
    assert "TRITON_INTERPRET is set: the interpreter compiles nothing" in capsys.readouterr().err


def _entry(block: int, warps: int = 4) -> dict[str, int]:
    return {"BLOCK": block, "BLOCK_C": 32, "warps": warps, "stages": 2}


def _table(**half: dict[str, int]) -> dict[str, Any]:
    usual = {"small": _entry(32), "large": _entry(64)}
    dtypes = {"half": usual | half, "tf32": dict(usual), "float32": usual}
    return {"sm90": {"small_product": dtypes}}


# Of kernels that multiply in TF32, products and sums are rounded one by one.
TWO_ROUNDINGS = """
from fbp_kernels.triton import launch
asked = launch.Plan.options.fget
launch.Plan.options = property(lambda p: asked(p) | {"enable_fp_fusion": not p.constants["TF32"]})
"""


def _run(
    tmp_path: Path, table: dict[str, Any], *arguments: str, before: str = ""
) -> tuple[int, str]:
    """The command, on the small kernels and a table of their own, after some statements."""
    path = tmp_path / "table.json"
    path.write_text(tuning.text(table))
    code = f"""{before}
import sys
from pathlib import Path
from fbp_kernels.tools import resources
from fbp_kernels.triton import tuning
tuning.MODULES = ("tests.fbp_kernels.triton.small",)
tuning.TABLE = Path({str(path)!r})
sys.exit(resources.main(sys.argv[1:]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "0"  # Triton's own default from 3.10 on
    done = subprocess.run(
        [sys.executable, "-c", code, "H100", "--processes", "1", *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_table_that_is_right_passes(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    status, printed = _run(tmp_path, _table(), "--check", "--json", str(out))
    assert status == 0, printed
    assert "6 kernels compiled" in printed
    rows = {(r["dtype"], r["size"]): r for r in json.loads(out.read_text())["rows"]}
    assert {at: row["products"] for at, row in rows.items()} == {
        ("half", "small"): ["mma.sync"],  # 32 rows are too few for wgmma
        ("half", "large"): ["wgmma"],
        ("tf32", "small"): ["mma.sync"],
        ("tf32", "large"): ["wgmma"],
        ("float32", "small"): ["fma"],
        ("float32", "large"): ["fma"],
    }
    for row in rows.values():
        assert 16 <= row["registers"] < 255
        assert row["spilled"] == 0
        assert row["resident"] >= 1
        assert row["load"] == 16
    # Two stages of two tiles: 64 x 32 and 32 x 64 numbers of 2 bytes.
    assert 2 * 2 * 64 * 32 * 2 <= rows["half", "large"]["shared"] <= 2 * 2 * 64 * 32 * 2 + 1024


@pytest.mark.slow
def test_a_table_that_is_wrong_fails(tmp_path: Path) -> None:
    table = _table(small=_entry(24), medium=_entry(32), large=_entry(256))
    del table["sm90"]["small_product"]["tf32"]["large"]
    status, printed = _run(tmp_path, table, "--check", before=TWO_ROUNDINGS)
    assert status == 1
    problems = printed[printed.index("with problems") :]
    assert "sm90 small_product half small: " in problems  # no power of two: does not compile
    assert "sm90 small_product half medium: no sample comes to it" in problems
    assert "sm90 small_product half large: spills " in problems
    assert "LookupError: table.json has no configuration for small_product tf32 large" in problems
    assert "sm90 small_product tf32 small: multiplies and adds in two roundings" in problems
    assert "7 kernels compiled" in printed
    assert "5 with problems" in printed, printed


AHEAD = """
import os
from pathlib import Path
import torch
from fbp_kernels.tools import tune
from fbp_kernels.triton import ahead, tuning
from tests.fbp_kernels.triton import small

def kept():
    return {path.name for path in Path(os.environ["TRITON_CACHE_DIR"]).iterdir()}

name = "tests.fbp_kernels.triton.small"
tuning.MODULES = (name,)
config = small.CANDIDATES["small_product"][1]
tune._compile(name, "small", "half", 90, 1)
before = kept()
small.small_product.device_caches.clear()
try:
    with tuning.choosing(lambda key, architecture, call: call(config)):
        small.samples("small", torch.bfloat16, "cpu")[0]()
except AttributeError as error:  # the stand-in for the driver can launch nothing
    assert "launcher_cls" in str(error), error
else:
    raise AssertionError("launched without a GPU")
assert len(before) == 1 and kept() == before, (before, kept())
"""


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_a_launch_looks_for(tmp_path: Path) -> None:
    """Other processes compile while one runs: it has to find what they made in Triton's cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", AHEAD],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
