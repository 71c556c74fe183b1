"""Bad arguments: every one has an error that names it, what came and what was expected."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fbp_kernels as fk

B, H, C, D, N = 4, 3, 5, 6, 8


def global_arguments(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "a": torch.randn(B, C), "v": torch.randn(B, D),
        "p": torch.randn(C, N), "q": torch.randn(D, N), "factor": 2,
    }  # fmt: skip
    return arguments | changes


def trunk_arguments(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "a": torch.randn(B, H, C), "v": torch.randn(B, H, D),
        "p": torch.randn(H, C, N), "q": torch.randn(H, D, N), "factor": 2,
    }  # fmt: skip
    return arguments | changes


def am_arguments(**changes: Any) -> dict[str, Any]:
    trunks = trunk_arguments()
    parts = {f"{name}_trunks": trunks[name] for name in ("a", "v", "p", "q")}
    return global_arguments() | parts | {"trunk_factor": 4} | changes


def pool_arguments(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x": torch.randn(B, 7, C), "weight": torch.randn(C, 2),
        "bias": torch.randn(2), "query": torch.randn(2), "scale": 1.0,
    }  # fmt: skip
    return arguments | changes


def norm_arguments(**changes: Any) -> dict[str, Any]:
    arguments = {"x": torch.randn(B, C, 2, 7), "weight": torch.randn(C), "bias": torch.randn(C)}
    return arguments | changes


STATE = torch.Generator().manual_seed(2).get_state().view(torch.int64)


def conv_arguments(**changes: Any) -> dict[str, Any]:
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(4, 3, 3, 3)
    return {"x": x, "weight": weight, "bias": torch.randn(4), "padding": 1} | changes


def drop_arguments(**changes: Any) -> dict[str, Any]:
    return {"x": torch.randn(3), "state": STATE} | changes


BAD: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    # rank and width
    (fk.fbp, global_arguments(a=torch.randn(C)), ValueError, r"fbp: a has shape \(5,\), expected \(B, C\)"),
    (fk.fbp, global_arguments(v=torch.randn(B + 1, D)), ValueError, r"v has shape \(5, 6\).*B=4"),
    (fk.fbp, global_arguments(p=torch.randn(C + 1, N)), ValueError, r"p has shape \(6, 8\).*C=5"),
    (fk.fbp, global_arguments(q=torch.randn(D, N + 2)), ValueError, r"q has shape \(6, 10\).*D=6, N=8"),
    (fk.fbp, global_arguments(p_bias=torch.randn(N - 1)), ValueError, r"p_bias has shape \(7,\).*N=8"),
    (fk.trunk_fbp, trunk_arguments(a=torch.randn(B, C)), ValueError, r"a has shape .*\(B, H, C\)"),
    (fk.trunk_fbp, trunk_arguments(v=torch.randn(B, H + 1, D)), ValueError, r"v has shape .*H=3"),
    (fk.trunk_fbp, trunk_arguments(q_bias=torch.randn(N)), ValueError, r"q_bias has shape .*H=3, N=8"),
    (fk.am_fbp, am_arguments(a_trunks=torch.randn(B - 1, H, C)), ValueError, r"a_trunks has shape .*B=4"),
    (fk.am_fbp, am_arguments(q_trunks=torch.randn(H, D + 1, N)), ValueError, r"q_trunks has shape .*D=6"),
    (fk.local_response_norm, {"x": torch.randn(3, 4)}, ValueError, "at least 3 dimensions"),
    (fk.attention_pool, pool_arguments(weight=torch.randn(C + 1, 2)), ValueError, "weight has shape .*C=5"),
    (fk.attention_pool, pool_arguments(query=torch.randn(3)), ValueError, "query has shape .*A=2"),
    (fk.batch_norm, norm_arguments(x=torch.randn(B, C)), ValueError, r"x has shape \(4, 5\), expected at least 3"),
    (fk.batch_norm, norm_arguments(bias=torch.randn(C + 1)), ValueError, "bias has shape .*C=5"),
    (fk.power_normalize, {"z": torch.tensor(1.0)}, ValueError, "z is a scalar"),
    # dtype and device
    (fk.fbp, global_arguments(p=torch.randn(C, N).double()), TypeError, "p is torch.float64, expected torch.float32"),
    (fk.fbp, global_arguments(a=torch.ones(B, C, dtype=torch.int64)), TypeError, "a is torch.int64, expected one of"),
    (fk.fbp, global_arguments(a=[1.0]), TypeError, "a is a list, expected a tensor"),
    (fk.fbp, global_arguments(p=None), TypeError, "p is None, expected a tensor"),
    (fk.am_fbp, am_arguments(q_trunks=[1.0]), TypeError, "q_trunks is a list, expected a tensor"),
    (fk.attention_pool, pool_arguments(query=None), TypeError, "query is None, expected a tensor"),
    (fk.attention_pool, pool_arguments(x=3.0), TypeError, "x is a float, expected a tensor"),
    (fk.attention_pool, pool_arguments(scale=torch.ones(2)), ValueError, r"scale has shape \(2,\)"),
    (fk.attention_pool, pool_arguments(scale=torch.ones((), dtype=torch.int64)), TypeError, "scale is torch.int64"),
    (fk.local_response_norm, {"x": [1.0]}, TypeError, "x is a list, expected a tensor"),
    (fk.local_response_norm, {"x": None}, TypeError, "x is None, expected a tensor"),
    (fk.power_normalize, {"z": None}, TypeError, "z is None, expected a tensor"),
    (fk.batch_norm, norm_arguments(x=None), TypeError, "x is None, expected a tensor"),
    (fk.batch_norm, norm_arguments(bias=None), TypeError, "bias is None, expected a tensor"),
    (fk.dropout, drop_arguments(x=None), TypeError, "x is None, expected a tensor"),
    (fk.local_response_norm, {"x": torch.ones(1, 2, 3, dtype=torch.int64)}, TypeError, "x is torch.int64"),
    (fk.power_normalize, {"z": [1.0]}, TypeError, "z is a list, expected a tensor"),
    (fk.power_normalize, {"z": torch.ones(2, 3).to_sparse()}, NotImplementedError, "do not run on torch.sparse_coo; use backend"),
    (fk.fbp, global_arguments(q=torch.randn(D, N, device="meta")), ValueError, "q is on meta, expected cpu"),
    (fk.batch_norm, norm_arguments(x=torch.ones(B, C, 2, 7, dtype=torch.int64)), TypeError, "x is torch.int64"),
    (fk.batch_norm, norm_arguments(weight=torch.randn(C).double()), TypeError, "bias is torch.float32, expected torch.float64 as weight is"),
    (fk.batch_norm, norm_arguments(x=torch.randn(B, C, 2, 7).double()), TypeError, "weight is torch.float32, expected torch.float64"),
    # factor, dropout, sizes
    (fk.fbp, global_arguments(factor=3), ValueError, "factor is 3, expected a divisor of the 8 columns"),
    (fk.fbp, global_arguments(factor=0), ValueError, "factor is 0"),
    (fk.am_fbp, am_arguments(trunk_factor=5), ValueError, "trunk_factor is 5"),
    (fk.fbp, global_arguments(dropout=1.5), ValueError, "dropout is 1.5, expected a probability"),
    (fk.fbp, global_arguments(dropout=float("nan")), ValueError, "dropout is nan"),
    (fk.attention_pool, pool_arguments(trunks=0), ValueError, "trunks is 0"),
    (fk.local_response_norm, {"x": torch.randn(1, 2, 3), "size": 0}, ValueError, "size is 0"),
    (fk.local_response_norm, {"x": torch.randn(1, 2, 3), "k": 0.0}, ValueError, "k is 0.0"),
    # lengths
    (fk.trunk_fbp, trunk_arguments(lengths=torch.tensor([0, 1, 4, 2])), ValueError, "from 0 to 4, expected from 0 to 3"),
    (fk.trunk_fbp, trunk_arguments(lengths=torch.tensor([-1, 1, 3, 2])), ValueError, "lengths go from -1 to 3"),
    (fk.trunk_fbp, trunk_arguments(lengths=torch.tensor([1, 1])), ValueError, r"lengths has shape \(2,\), expected \(B=4\)"),
    (fk.trunk_fbp, trunk_arguments(lengths=torch.ones(B)), TypeError, "lengths is torch.float32, expected an int64"),
    (fk.am_fbp, am_arguments(lengths=[1, 2, 3, 3]), TypeError, "lengths is list"),
    (fk.attention_pool, pool_arguments(lengths=torch.tensor([8, 1, 1, 1])), ValueError, "from 1 to 8, expected from 0 to 7"),
    (fk.batch_norm, norm_arguments(lengths=torch.tensor([8, 1, 1, 1])), ValueError, "from 1 to 8, expected from 0 to 7"),
    (fk.batch_norm, norm_arguments(lengths=torch.tensor([1])), ValueError, r"lengths has shape \(1,\), expected \(B=4\)"),
    # backend
    (fk.fbp, global_arguments(backend="cuda"), ValueError, "backend is 'cuda', expected one of native, reference, triton"),
    (fk.conv2d, conv_arguments(x=torch.randn(3, 4, 5)), ValueError, r"x has shape \(3, 4, 5\), expected \(N, C, H, W\)"),
    (fk.conv2d, conv_arguments(weight=torch.randn(4, 2, 3, 3)), ValueError, r"weight has shape .*, expected \(O, C=3, h, w\)"),
    (fk.conv2d, conv_arguments(bias=torch.randn(5)), ValueError, r"bias has shape \(5,\), expected \(O=4\)"),
    (fk.conv2d, conv_arguments(weight=torch.randn(4, 3, 3, 9)), ValueError, "weight has 9 rows or columns for W=5 and padding 1"),
    (fk.conv2d, conv_arguments(stride=(1, 0)), ValueError, r"stride is \(1, 0\), expected at least 1"),
    (fk.conv2d, conv_arguments(stride=(1, 2, 3)), ValueError, "stride is .*, expected one number or two"),
    (fk.conv2d, conv_arguments(padding=-1), ValueError, r"padding is \(-1, -1\), expected at least 0"),
    (fk.conv2d, conv_arguments(weight=torch.randn(4, 3, 3, 3).double()), TypeError, "weight is torch.float64, expected torch.float32"),
    (fk.conv2d, conv_arguments(backend="triton"), RuntimeError, "conv2d cannot run on backend 'triton': this version has no"),
    (fk.dropout, drop_arguments(p=1.5), ValueError, "dropout: p is 1.5, expected a probability from 0 to 1"),
    (fk.dropout, drop_arguments(state=STATE[1:]), ValueError, r"state is torch.int64 of shape \(631,\) on cpu, expected"),
    (fk.dropout, drop_arguments(state=STATE.double()), ValueError, r"state is torch.float64 of shape \(632,\)"),
    (fk.dropout, drop_arguments(x=torch.ones(3, dtype=torch.int64)), TypeError, "x is torch.int64"),
    (fk.dropout, drop_arguments(backend="triton"), RuntimeError, "dropout cannot run on backend 'triton': this version has no"),
    (fk.batch_norm, norm_arguments(backend="triton"), RuntimeError, "batch_norm cannot run on backend 'triton': this version has no triton kernel"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "arguments", "error", "message"),
    BAD,
    ids=[f"{operator.__name__}-{message[:30]}" for operator, _, _, message in BAD],
)
def test_bad_arguments(
    operator: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The reference, which would take some of them, is not given them either."""
    with pytest.raises(error, match=message):
        operator(**arguments)
    if "backend" not in message:
        with pytest.raises(error, match=message):
            operator(**arguments, backend="reference")


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [(operator, given, message) for operator, given, _, message in BAD if "has shape" in message],
    ids=[f"{operator.__name__}-{m[:30]}" for operator, _, _, m in BAD if "has shape" in m],
)
def test_shapes_that_do_not_fit_are_seen_without_memory(
    operator: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    # No kernel runs on fake tensors that could look itself.
    with FakeTensorMode() as mode:
        fake = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        with pytest.raises(ValueError, match=message):
            operator(**fake)


def test_the_good_arguments_are_good() -> None:
    for operator, arguments in (
        (fk.dropout, drop_arguments()),
        (fk.conv2d, conv_arguments()),
        (fk.fbp, global_arguments()),
        (fk.trunk_fbp, trunk_arguments()),
        (fk.am_fbp, am_arguments()),
        (fk.attention_pool, pool_arguments()),
        (fk.batch_norm, norm_arguments()),
    ):
        operator(**arguments)
