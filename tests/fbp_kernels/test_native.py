"""What is particular to the C++ kernels: instruction sets, and numbers at the edge."""

import os
import subprocess
import sys

import pytest
import torch

import fbp_kernels as fk
from tests.marks import slow

from .cases import CASES, assert_case, over_examples
from .checks import assert_parity, fused

ISAS = torch.ops.fbp_native.cpu_isas().split(",")


def test_the_portable_kernels_are_always_there() -> None:
    assert "portable" in ISAS
    assert torch.ops.fbp_native.cpu_isa() in ISAS


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("operator", [o for o in CASES if "native" in fused(o)])
def test_every_instruction_set_matches_float64(
    operator: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    assert torch.ops.fbp_native.cpu_isa() == isa

    over_examples(operator, "native", lambda case: assert_case(case, "native"), examples=12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("B", "C", "N"),
    # One row; a tile of rows and a part of one; a depth past a run and odd; columns past a job's, no whole vectors;
    # more rows than a vector has lanes; more rows than a block has; more columns and more rows than the backward takes
    # at a time.
    [
        (1, 257, 700),
        (5, 131, 35),
        (13, 40, 301),
        (21, 40, 99),
        (131, 261, 52),
        (17, 16, 4400),
        (1101, 16, 44),
    ],
)
def test_sizes_that_divide_no_tile(
    isa: str, dtype: torch.dtype, B: int, C: int, N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)

    def draw(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(B, C), (B, C + 3), (C, N), (C + 3, N)]
        return [(torch.randn(s, generator=generator) / s[0] ** 0.5).to(dtype) for s in shapes]

    factor = next(factor for factor in (11, 7, 4) if N % factor == 0)
    assert_parity(fk.fbp, draw, {"factor": factor}, "native", draws=3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_local_response_norm_of_numbers_at_the_edge(
    isa: str, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    x = torch.randn(2, 20, 37)
    x[0, 3, 5], x[0, 9, 7], x[1, 4, 2] = float("nan"), float("inf"), 1e25
    x[1, 15, 3], x[1, 0, 0] = 1e-38, 0.0
    got = fk.local_response_norm(x, 5, 0.1, beta, 0.5, backend="native")
    want = fk.reference.local_response_norm(x, 5, 0.1, beta, 0.5)
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 4])
# One vector and a part of one; several of them in every direction, and more than one job.
@pytest.mark.parametrize("shape", [(2, 17, 3, 1), (3, 33, 7, 5), (2, 70, 19, 31)])
def test_gradients_of_local_response_norm_come_in_any_layout(
    isa: str,
    dtype: torch.dtype,
    size: int,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    last = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = fk.local_response_norm(last, size, 0.5, backend="native")
    exact = last.detach().double().requires_grad_()
    truth = fk.reference.local_response_norm(exact, size, 0.5)
    (want,) = torch.autograd.grad(truth, exact, dy.to(dtype).double())

    for layout in (torch.contiguous_format, torch.channels_last):
        given = dy.to(dtype, memory_format=layout)
        (dx,) = torch.autograd.grad(y, last, given, retain_graph=True)
        torch.testing.assert_close(dx, want.to(dtype))


def test_results_past_two_to_the_31_elements_of_weights_are_addressed_by_stride() -> None:
    # A weight whose rows lie 2^28 elements apart: real numbers only where they are looked at.
    rows, columns, stride = 9, 6, 2**28
    storage = torch.empty(rows * stride, dtype=torch.bfloat16)  # reserved, not touched
    p = storage.as_strided((rows, columns), (stride, 1))
    values = torch.randn(rows, columns).bfloat16()
    p.copy_(values)
    a, v, q = (
        torch.randn(3, rows).bfloat16(),
        torch.randn(3, 4).bfloat16(),
        torch.randn(4, columns).bfloat16(),
    )
    got = fk.fbp(a, v, p, q, 3, backend="native")
    torch.testing.assert_close(got, fk.fbp(a, v, values, q, 3, backend="native"), rtol=0, atol=0)


@pytest.mark.parametrize("kept", slow(["0", "-1", "lots"], "-1"))
def test_scratch_that_is_kept_is_limited_by_the_environment(kept: str) -> None:
    code = (
        "import torch, fbp_kernels as fk\n"
        "a, v, p, q = torch.ones(64, 32), torch.ones(64, 32), torch.ones(32, 640), torch.ones(32, 640)\n"
        "print(fk.fbp(a, v, p, q, 5, backend='native').sum().item())"
    )
    environment = os.environ | {"FBP_SCRATCH_MIB": kept}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if kept == "0":
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == 64 * 128 * 5 * 32 * 32
    else:
        assert f"FBP_SCRATCH_MIB is '{kept}', expected a number from 0" in done.stderr


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_larger_than_a_cache_are_those_of_their_parts(
    isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    # Written past the cache above 1 MiB, which no part reaches; several runs of rows, and strips of columns of which
    # the last is shorter.
    B, C, N, factor = 133, 96, 1600, 4
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    a, v, p, q, dz = draw(B, C), draw(B, C + 3), draw(C, N), draw(C + 3, N), draw(B, N // factor)

    def gradients(columns: slice, outputs: slice) -> list[torch.Tensor]:
        weights = [x[:, columns].contiguous().requires_grad_() for x in (p, q)]
        z = fk.fbp(a, v, *weights, factor, backend="native")
        return list(torch.autograd.grad(z, weights, dz[:, outputs]))

    whole = gradients(slice(None), slice(None))
    for start in range(0, N, 400):
        columns = slice(start, start + 400)
        part = gradients(columns, slice(start // factor, (start + 400) // factor))
        for got, want in zip(whole, part, strict=True):
            assert torch.equal(got[:, columns], want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_are_the_same_bits_whichever_tile_makes_them(
    isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    # Many tiles share the work on a panel, and copy it; one or two do not. Depths are no multiple of four steps.
    B, C, D, N, factor = 140, 131, 70, 1100, 5
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    a, v, p, q, dz = draw(B, C), draw(B, D), draw(C, N), draw(D, N), draw(B, N // factor)

    def pooled(rows: slice, channels: slice) -> tuple[torch.Tensor, ...]:
        inputs = [a[rows, channels], v[rows], p[channels], q]
        inputs = [x.contiguous().requires_grad_() for x in inputs]
        z = fk.fbp(*inputs, factor, backend="native")
        return z, *torch.autograd.grad(z, inputs, dz[rows])

    everything = slice(None)
    z, da, dv, dp, _ = pooled(everything, everything)
    for rows in (slice(0, 17), slice(17, 40), slice(40, B)):
        few = pooled(rows, everything)
        for got, want in zip(few, (z, da, dv), strict=False):
            assert torch.equal(got, want[rows])
    for rows in (slice(0, 5), slice(5, 12)):
        assert torch.equal(pooled(rows, everything)[0], z[rows])
    for channels in (slice(0, 7), slice(7, C)):
        assert torch.equal(pooled(everything, channels)[3], dp[channels])
