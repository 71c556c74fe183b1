"""Ranges nest, close and leave no trace in the model."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from avemo.data.batch import random_batch
from avemo.models import build_model
from avemo.training.config import OptimizerConfig
from avemo.training.step import TrainingStep
from bench.step import STEPS
from fbp_kernels import BatchNormReLU
from profiling import ranges
from profiling.ranges import PREFIX, ModuleRanges, Range
from profiling.step import loss_range


class Recorder:
    """Stands in for the nvtx package."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[str] = []

    def push_range(self, name: str, domain: str) -> None:
        assert domain == "avemo"
        self.open.append(name)
        self.seen.append("/".join(self.open))

    def pop_range(self, domain: str) -> None:
        self.open.pop()

    def enabled(self) -> bool:
        return True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    stand_in = Recorder()
    monkeypatch.setattr(ranges, "nvtx", stand_in)
    yield stand_in
    assert not stand_in.open


class Broken(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error("broken")


def _model(last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), last)


def test_what_is_one_pass_stays_one() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), BatchNormReLU(3))
    ranged = ModuleRanges(model)
    assert ranged.kinds == {"0": "Conv2d", "1": "BatchNormReLU"}
    with ranged:
        assert not model[1].apart()


def test_ranges_are_nested_as_modules_are(recorder: Recorder) -> None:
    model = _model(nn.Linear(3, 2))
    with ModuleRanges(model) as opened, Range("forward"):
        model(torch.randn(4, 3))
    inside = ["0", "0/0.0", "0/0.1", "1"]
    assert recorder.seen == ["forward", *(f"forward/{path}" for path in inside)]
    assert opened.kinds == {"0": "Sequential", "0.0": "Linear", "0.1": "ReLU", "1": "Linear"}


def test_other_hooks_run_inside_the_range(recorder: Recorder) -> None:
    model = _model(nn.Linear(3, 2))
    seen: list[str] = []
    model[1].register_forward_pre_hook(lambda *_: seen.append("/".join(recorder.open)))
    with ModuleRanges(model):
        model(torch.randn(4, 3))
    assert seen == ["1"]


def test_ranges_close_when_the_model_raises(recorder: Recorder) -> None:
    model = _model(Broken(ValueError))
    with ModuleRanges(model), Range("step"):
        with pytest.raises(ValueError, match="broken"), Range("forward"):
            model(torch.randn(4, 3))
        assert recorder.open == ["step"]
        with Range("again"):
            assert recorder.open == ["step", "again"]


def test_an_interrupt_leaves_no_range_open(recorder: Recorder) -> None:
    model = _model(Broken(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), ModuleRanges(model):
        model(torch.randn(4, 3))
    assert recorder.seen[-1] == "1"  # and the fixture finds nothing open


def test_ranges_of_a_raising_model_are_whole_in_the_profiler() -> None:
    model = _model(Broken(ValueError))
    with profile(activities=[ProfilerActivity.CPU]) as profiler, ModuleRanges(model):
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                model(torch.randn(4, 3))
    ours = [e.name for e in profiler.events() if e.name.startswith(PREFIX)]
    assert sorted(ours) == sorted(2 * [PREFIX + path for path in ("0", "0.0", "0.1", "1")])


def _train(model: nn.Module, *, ranged: bool) -> list[Tensor]:
    """Losses and final weights of two steps."""
    shape = STEPS["tiny"]
    step = TrainingStep(model, 4, OptimizerConfig(), seed=3, total=10)
    batch = random_batch(**shape.batch, classes=4)
    if not ranged:
        losses = [step(batch) for _ in range(2)]
    else:
        with ModuleRanges(model), loss_range(step):
            losses = [step(batch) for _ in range(2)]
    return [*losses, *model.state_dict().values()]


def test_ranges_leave_results_bit_identical_and_no_hooks_behind() -> None:
    shape = STEPS["tiny"]
    torch.manual_seed(0)
    plain = build_model(shape.model, bins=50, face_size=16, classes=4)
    ranged = copy.deepcopy(plain)
    for a, b in zip(_train(plain, ranged=False), _train(ranged, ranged=True), strict=True):
        assert torch.equal(a, b)
    for module in ranged.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_loss_is_a_range_and_its_method_comes_back(recorder: Recorder) -> None:
    shape = STEPS["tiny"]
    model = build_model(shape.model, bins=50, face_size=16, classes=4)
    step = TrainingStep(model, 4, OptimizerConfig(), seed=3, total=10)
    batch = random_batch(**shape.batch, classes=4)
    with loss_range(step):
        step(batch)
    assert recorder.seen == ["loss"]
    step(batch)
    assert recorder.seen == ["loss"]


def test_without_nvtx_ranges_still_reach_the_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "nvtx", None)
    assert ranges.nvtx_status().startswith("off: the package nvtx is not installed")
    with profile(activities=[ProfilerActivity.CPU]) as profiler, Range("alone"):
        pass
    assert [e.name for e in profiler.events()] == [PREFIX + "alone"]


def test_the_cost_of_a_range_is_what_it_adds_to_a_call(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    ticks = iter([1.0, 1.25, 2.0, 2.75])  # 0.25 s without ranges, 0.75 s with them
    monkeypatch.setattr(ranges.time, "process_time", lambda: next(ticks))
    assert ranges.cost_seconds(repeats=100) == pytest.approx(0.005)
    assert recorder.seen == 100 * ["0"]
