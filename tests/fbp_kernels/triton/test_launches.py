"""How many kernels an operator launches, and the one way to launch them."""

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels.triton import launch
from fbp_kernels.triton.launch import Plan
from fbp_kernels.triton.tuning import Config, Key

from ..checks import kept_by, pairs

LENGTHS = torch.tensor([4, 0, 2, 1, 3])


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


Call = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]


def fbp(**options: object) -> Call:
    inputs = [leaf(5, 6), leaf(5, 7), leaf(6, 12), leaf(7, 12), leaf(12), leaf(12)]
    return lambda *t: fk.fbp(
        *t[:4], 3, p_bias=t[4], q_bias=t[5], adaptive=True, dropout=0.5, training=True, **options
    ), inputs


def trunk_fbp(**options: object) -> Call:
    inputs = [leaf(5, 4, 6), leaf(5, 4, 7), leaf(4, 6, 12), leaf(4, 7, 12)]
    return lambda *t: fk.trunk_fbp(
        *t, 4, lengths=LENGTHS, dropout=0.5, training=True, **options
    ), inputs


def am_fbp(**options: object) -> Call:
    inputs = [leaf(5, 6), leaf(5, 7), *trunk_fbp()[1]]
    inputs[4:4] = [leaf(6, 10), leaf(7, 10)]
    return lambda *t: fk.am_fbp(
        *t, 5, 3, lengths=LENGTHS, dropout=0.5, training=True, **options
    ), inputs


def attention_pool(**options: object) -> Call:
    inputs = [leaf(5, 9, 6), leaf(6, 4), leaf(4), leaf(4), leaf()]
    return lambda *t: fk.attention_pool(*t, trunks=3, lengths=LENGTHS, **options), inputs


def local_response_norm(**options: object) -> Call:
    return lambda x: fk.local_response_norm(x, relu=True, **options), [leaf(3, 20, 7, 9)]


def power_normalize(**options: object) -> Call:
    return lambda z: fk.power_normalize(z, **options), [leaf(7, 33)]


# Kernels launched by the forward, and by the backward at most.
LAUNCHES: dict[str, tuple[Callable[..., Call], int, int]] = {
    "fbp": (fbp, 1, 3),
    "trunk_fbp": (trunk_fbp, 1, 3),
    "am_fbp": (am_fbp, 1, 3),
    "attention_pool": (attention_pool, 1, 3),
    "local_response_norm": (local_response_norm, 1, 1),
    "power_normalize": (power_normalize, 1, 1),
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("operator", [o for o, backend in pairs() if backend == "triton"])
def test_launches(operator: str, keep: bool) -> None:
    make, forward, backward = LAUNCHES[operator]
    name = kept_by(getattr(fk, operator))
    if not keep and not name:
        pytest.skip("keeps nothing")
    options = {name: keep} if name else {}
    call, inputs = make(backend="triton", **options)
    with launch.counted() as names:
        result = call(*inputs)
    assert len(names) == forward, names
    results = result if isinstance(result, tuple) else (result,)
    with launch.counted() as names:
        sum((t * t).sum() for t in results).backward()
    assert 1 <= len(names) <= backward, names
    assert all(t.grad is not None for t in inputs)


@triton.jit
def _scale(x, y, n, by, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0) * by, mask=at < n)


CONFIG = Config(blocks={"TILE": 4}, warps=1, stages=1)


def planned(device: torch.device, n: int, by: float) -> tuple[Key, Callable[[Config], Plan]]:
    """Plans `_scale`; one configuration will do."""

    def plan(_: Config) -> Plan:
        return Plan(_scale, (-(-n // 4),), (n, by), {}, CONFIG)

    return Key("power_normalize_forward", "float32", "small"), plan


scaled = launch.launcher(planned)


def test_launch_runs_the_kernel_with_the_blocks_of_the_configuration() -> None:
    x, y = torch.arange(10.0), torch.empty(10)
    with launch.counted() as names:
        scaled((10, 2.0), (x, y))
    assert names == ["_scale"]
    assert y.tolist() == [2.0 * i for i in range(10)]


def test_instead_sees_what_would_have_run_and_nothing_runs() -> None:
    x, y = torch.ones(10), torch.zeros(10)
    seen = []
    for _ in range(2):  # prepared or not
        with launch.instead(lambda *call: seen.append(call)):
            scaled((10, 2.0), (x, y))
        assert not y.any()
        scaled((10, 2.0), (x, y))
        y.zero_()
    for kernel, grid, arguments, options in seen:
        assert kernel is _scale
        assert grid == (3,)
        assert arguments[0] is x
        assert arguments[2:] == (10, 2.0)
        assert options == {
            "TILE": 4, "num_warps": 1, "num_stages": 1, "enable_fp_fusion": True
        }  # fmt: skip


def test_the_interpreter_counts_as_an_architecture_of_its_own() -> None:
    assert launch.architecture(torch.device("cpu")) == "interpreter"
    assert launch.multiprocessors(torch.device("cpu")) == 4
