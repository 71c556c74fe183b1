"""The samples that configurations are judged by: what they come to, and that what is right is found right."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fbp_kernels.triton import (
    attention_pool,
    bilinear,
    judge,
    launch,
    local_response_norm,
    power_normalize,
    tuning,
)
from fbp_kernels.triton.launch import Plan
from fbp_kernels.triton.tuning import Config, Key
from tests.marks import slow

# Of every module, sizes that the interpreter can do.
TINY: dict[Any, tuple[int, ...]] = {
    bilinear: (3, 5, 7, 4, 3, 2, 3, 2),
    attention_pool: (3, 6, 5, 4, 2),
    local_response_norm: (2, 6, 3, 4),
    power_normalize: (3, 5),
}
CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, sizes in TINY.items():
        monkeypatch.setattr(module, "SAMPLES", {"small": sizes})
    monkeypatch.setattr(judge, "_FEW", 0)  # one draw: the interpreter is slow


def _samples(module: Any, dtype: torch.dtype = torch.float32) -> list[judge.Sample]:
    return judge.samples(module.__name__, "small", dtype, "cpu")


def test_every_module_has_samples() -> None:
    with pytest.raises(LookupError, match="no samples of math to judge by, there are: fbp_k"):
        judge.samples("math", "small", torch.float32, "cpu")
    for module in tuning.MODULES:
        assert judge.samples(module, "small", torch.float32, "cpu")


@pytest.mark.parametrize("size", tuning.SIZES)
def test_samples_come_to_every_entry_of_the_table(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without launches, whose results nobody looks at here."""
    monkeypatch.setattr(judge, "_drawer", lambda device, dtype, seed: partial(_zeros, dtype))
    reached: set[Key] = set()
    for module in tuning.MODULES:
        for name, dtype in tuning.DTYPES.items():
            if name == "tf32":
                continue  # launches as float32 does, by another key
            for sample in judge.samples(module, size, dtype, "cpu"):
                reached |= set(_reached(sample))
    entries = tuning.entries("sm90")
    assert reached == {key for key in entries if key.size == size and key.dtype != "tf32"}
    assert {(k.kernel, k.size) for k in entries if k.dtype == "tf32"} <= {
        (k.kernel, k.size) for k in entries if k.dtype == "float32"
    }


def _zeros(dtype: torch.dtype, *shape: int, width: int = 1) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _reached(sample: judge.Sample) -> Iterator[Key]:
    found: list[Key] = []

    def note(key: Key, architecture: str, call: tuning.Call) -> Any:
        found.append(key)
        return call(tuning.lookup(key, architecture))

    with tuning.choosing(note), launch.instead(lambda *_: None):
        sample.ours(0)
    yield from found


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "module", slow(TINY, attention_pool), ids=lambda module: module.__name__.rsplit(".", 1)[-1]
)
def test_what_is_right_is_found_right(module: Any) -> None:
    """Every kernel in the interpreter with the table's configuration: references, cotangents and masks are the same."""
    for sample in _samples(module, torch.bfloat16):
        judged = judge.Judge(sample)
        keys = judged.reached()
        assert keys
        for key in keys:
            assert judged.why_wrong(key, tuning.lookup(key, "interpreter")) == "", key


@pytest.mark.usefixtures("tiny")
def test_a_kernel_that_forgets_a_tile_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = _samples(power_normalize)
    judged = judge.Judge(sample)
    key = judged.reached()[0]
    config = tuning.lookup(key, "interpreter")
    whole = power_normalize._plan_forward

    def short(*arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
        key, plan = whole(*arguments)

        def forgets(chosen: Config) -> Plan:
            planned = plan(chosen)
            n = planned.grid[0]
            return replace(planned, grid=(n - 1,)) if chosen is config and n > 1 else planned

        return key, forgets

    monkeypatch.setattr(power_normalize, "_forward", launch.launcher(short))
    config = Config({**config.blocks, "BM": 1}, config.warps, config.stages)
    assert judged.why_wrong(key, config) == "result 0 is not finite everywhere"


class InBackward(torch.autograd.Function):
    """Runs something where a gradient is taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Any) -> Tensor:
        ctx.run = run
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.run()
        return gradients[0], None


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("where", ["no_grad", "inference", "autocast", "backward"])
def test_judging_in_the_middle_of_a_call_disturbs_nothing(where: str) -> None:
    key = Key("power_normalize_backward", "float32", "small")
    config = tuning.lookup(key, "interpreter")
    found: list[str] = []

    def judged() -> None:
        found.extend(judge.verdicts(key, [config], tuning.chosen, CPU))

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    if where == "backward":
        x = torch.ones(2, requires_grad=True)
        InBackward.apply(x, judged).sum().backward()  # type: ignore[no-untyped-call]
    elif where == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            judged()
    else:
        with torch.no_grad() if where == "no_grad" else torch.inference_mode():
            judged()
    assert found == [""]
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_no_sample_comes_to_cannot_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "samples", lambda *_: [])
    key = Key("fbp_forward", "half", "small")
    with pytest.raises(LookupError, match="comes to fbp_forward half small, so nothing can be jud"):
        judge.verdicts(key, [], tuning.chosen, CPU)


def test_other_threads_go_by_the_table_while_one_tries_others() -> None:
    key = Key("fbp_forward", "float32", "small")
    seen: list[Config] = []
    with tuning.choosing(lambda key, architecture, call: call("tried")):  # type: ignore[arg-type]
        other = threading.Thread(
            target=lambda: tuning.run(key, "interpreter", lambda config: seen.append(config))
        )
        other.start()
        other.join()
        assert tuning.run(key, "interpreter", lambda config: config) == "tried"
    assert seen == [tuning.lookup(key, "interpreter")]
