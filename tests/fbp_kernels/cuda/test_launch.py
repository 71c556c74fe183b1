"""How kernels are started: what a device refuses, and what a launch that fails leaves behind."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk

from .shim import CAPABILITIES, SHARED_BYTES, Shim, embed, load

RawCall = tuple[str, tuple[Any, ...]]
_number = count(1000)  # of multiprocessors: another device for every test


@pytest.fixture
def library() -> Iterator[Shim]:
    """The library with a device that no kernel has been started on."""
    library = load()
    library.device(9, next(_number))
    yield library
    library.last_error()
    library.device(9, 4)


# ---- the rules of a device ----


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"grid": (0, 1, 1)}, "a grid of (0, 1, 1)"),
        ({"grid": (1, 1, 0)}, "a grid of (1, 1, 0)"),
        ({"grid": (1 << 31, 1, 1)}, "a grid of (2147483648, 1, 1)"),
        ({"grid": (1, 1 << 16, 1)}, "a grid of (1, 65536, 1)"),
        ({"grid": (1, 1, 1 << 16)}, "a grid of (1, 1, 65536)"),
        ({"block": (0, 1, 1)}, "blocks of (0, 1, 1)"),
        ({"block": (1025, 1, 1)}, "blocks of (1025, 1, 1)"),
        ({"block": (32, 33, 1)}, "blocks of (32, 33, 1)"),
        ({"block": (1, 1, 65)}, "blocks of (1, 1, 65)"),
        ({"grid": (16, 1, 1), "cluster": 16}, "invalid cluster size"),
        ({"grid": (12, 1, 1), "cluster": 8}, "invalid cluster size"),
    ],
)
def test_sizes_that_no_device_takes(library: Shim, sizes: dict[str, Any], said: str) -> None:
    assert said in library.start(**sizes)
    assert library.last_error()


@pytest.mark.parametrize(
    "sizes",
    [
        {"block": (1024, 1, 1)},
        {"block": (1, 16, 64)},
        {"grid": (2, 3, 2)},
        {"grid": (16, 1, 1), "cluster": 8},
        {"shared": 8 << 10},
    ],
)
def test_sizes_that_every_device_takes(library: Shim, sizes: dict[str, Any]) -> None:
    assert library.start(**sizes) == ""
    assert not library.last_error()


def test_launch_bounds_count(library: Shim) -> None:
    assert library.probe("within_launch_bounds") == ""
    said = library.probe("beyond_launch_bounds")
    assert "64 threads of a kernel whose launch bounds allow 63" in said


def test_clusters_need_a_device_that_has_them(library: Shim) -> None:
    library.device(8, next(_number))
    assert "clusters before sm_90" in library.start((8, 1, 1), cluster=8)


def test_static_shared_memory_counts(library: Shim) -> None:
    static = 128  # of the one number that the kernel has
    assert library.start(shared=(48 << 10) - static) == ""
    assert "bytes of dynamic shared memory, allowed are" in library.start(
        shared=(48 << 10) - static + 1
    )
    assert "are left by static memory" in library.start(allowed=SHARED_BYTES)
    assert library.start(allowed=SHARED_BYTES - static, shared=SHARED_BYTES - static) == ""


def test_what_is_allowed_is_allowed_to_one_kernel_on_one_device(library: Shim) -> None:
    much = 100 << 10
    assert "allowed are" in library.start(allowed=much, shared=much, to_another=True)
    assert library.start(allowed=much, shared=much) == ""
    assert library.start(shared=much) == ""
    library.device(9, next(_number))
    assert "allowed are" in library.start(shared=much)


# ---- the kernels ----


def _am_fbp(backend: str) -> Tensor:
    shapes = (5, 24), (5, 40), (5, 6, 24), (5, 6, 40), (24, 60), (40, 60), (6, 24, 30), (6, 40, 30)
    return fk.am_fbp(*_leaves(*shapes), 5, 3, adaptive=True, backend=backend)


def _fbp(backend: str) -> Tensor:
    inputs = _leaves((3, 9), (3, 7), (9, 12), (7, 12), (12,), (12,))
    return fk.fbp(*inputs[:4], 3, p_bias=inputs[4], q_bias=inputs[5], backend=backend)


def _attention_pool(backend: str) -> Tensor:
    inputs = _leaves((2, 70, 9), (9, 6), (6,), (6,), ())
    return torch.cat([t.flatten() for t in fk.attention_pool(*inputs, trunks=2, backend=backend)])


def _local_response_norm(backend: str, *, last: bool) -> Tensor:
    (x,) = _leaves((2, 35, 5, 7))
    layout = torch.channels_last if last else torch.contiguous_format
    return fk.local_response_norm(x.contiguous(memory_format=layout), backend=backend)


CALLS: dict[str, Callable[[str], Tensor]] = {
    "am_fbp": _am_fbp,
    "fbp": _fbp,
    "attention_pool": _attention_pool,
    "local_response_norm": partial(_local_response_norm, last=False),
    "local_response_norm, channels last": partial(_local_response_norm, last=True),
}
operators = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
capabilities = pytest.mark.parametrize("capability", CAPABILITIES, ids=["clusters", "no clusters"])


def _leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def raw_calls(shim: Shim, call: Callable[[str], Tensor]) -> list[tuple[RawCall, list[Tensor]]]:
    """The raw operators that a call, forward and backward, is made of, and their results."""
    found: list[tuple[RawCall, list[Tensor]]] = []
    run = shim.run

    def recording(name: str, *arguments: Any) -> Any:
        results = run(name, *arguments)
        kept = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
        found.append(((name, kept), [t.clone() for t in tensors(results)]))
        return results

    shim.run = recording  # type: ignore[method-assign]
    try:
        z = call("native")
        z.backward(torch.linspace(-1, 1, z.numel()).reshape(z.shape))
    finally:
        shim.run = run  # type: ignore[method-assign]
    return found


def tensors(results: Any) -> list[Tensor]:
    """The tensors among the results of a raw operator."""
    results = results if isinstance(results, tuple | list) else [results]
    return [t for t in results if t is not None]


def run(name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    return tensors(getattr(torch.ops.fbp_shim, name)(*arguments))


@operators
@capabilities
def test_a_launch_that_fails_leaves_nothing_behind(
    shim: Shim, call: Callable[[str], Tensor], capability: int
) -> None:
    """Whichever launch of an operator it is: the error is told once, and the next call is right."""
    shim.fixed_capability = capability
    for (name, arguments), expected in raw_calls(shim, call):
        for number in range(shim.launches(lambda: run(name, arguments))):  # noqa: B023
            shim.fail_launch(number)
            with pytest.raises(RuntimeError, match=r"kernel.*: too many resources requested"):
                shim.run(name, *arguments)
            assert not shim.last_error()
            for got, want in zip(tensors(shim.run(name, *arguments)), expected, strict=True):
                assert torch.equal(got, want)


@operators
@capabilities
def test_a_launch_that_fails_in_a_graph_leaves_nothing_that_counts(
    shim: Shim, call: Callable[[str], Tensor], capability: int
) -> None:
    """What an operator had noted before stays in the graph, whose memory it shares with what follows."""
    shim.fixed_capability = capability
    for (name, arguments), expected in raw_calls(shim, call):
        for number in range(shim.launches(lambda: run(name, arguments))):  # noqa: B023
            with shim.captured() as graph:
                copies = tuple(embed(a) if isinstance(a, Tensor) else a for a in arguments)
                shim.fail_launch(number)
                with pytest.raises(RuntimeError, match=r"kernel.*: too many resources requested"):
                    run(name, copies)
                results = run(name, copies)
            assert len(graph) > number
            for _ in range(2):
                for result in results:
                    result.fill_(math.nan)
                graph.replay()
                for got, want in zip(results, expected, strict=True):
                    assert torch.equal(got, want), name
            del copies, results
            shim.forget_graphs()


@operators
def test_blocks_fit_the_devices_with_the_least_shared_memory(
    shim: Shim, call: Callable[[str], Tensor]
) -> None:
    """And where they do not, the launch that cannot be says so, with its kernel's name."""
    calls = raw_calls(shim, call)
    shim.device(8, next(_number), 99 << 10)
    for (name, arguments), _ in calls:
        assert shim.launches(lambda: run(name, arguments)) > 0  # noqa: B023
    if call is CALLS["am_fbp"]:
        shim.device(8, next(_number), 60 << 10)
        for (name, arguments), _ in calls:
            with pytest.raises(RuntimeError, match=r"kernel.*: invalid argument"):
                run(name, arguments)


def test_clusters_add_up_what_the_last_block_would(shim: Shim) -> None:
    """Bit by bit, with as many blocks to a tile as there can be."""
    shim.multiprocessors(64)
    inputs = _leaves((3, 9, 20), (3, 9, 33), (9, 20, 40), (9, 33, 40))
    results = []
    for shim.fixed_capability in CAPABILITIES:
        with torch.no_grad():
            blocks = shim.blocks(lambda: results.append(fk.trunk_fbp(*inputs, 4, backend="native")))
        assert blocks == 2 * 8
    assert torch.equal(*results)
