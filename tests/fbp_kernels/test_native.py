"""What is particular to the C++ kernels: instruction sets, and numbers at the edge."""

import pytest
import torch

import fbp_kernels as fk

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
    # One row; a tile of rows and a part of one; a depth past a run and odd; columns past a job's, no whole vectors.
    [(1, 257, 700), (5, 131, 35), (13, 40, 301), (131, 150, 52)],
)
def test_sizes_that_divide_no_tile(
    isa: str, dtype: torch.dtype, B: int, C: int, N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)

    def draw(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(B, C), (B, C + 3), (C, N), (C + 3, N)]
        return [(torch.randn(s, generator=generator) / s[0] ** 0.5).to(dtype) for s in shapes]

    factor = 7 if N % 7 == 0 else 4
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
