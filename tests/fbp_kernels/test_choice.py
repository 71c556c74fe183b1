"""Which backend a call on a GPU gets: by the table, by the rule, and what is said of it. No GPU is asked."""

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import backends, choice, doctor, native, triton
from fbp_kernels.accelerate import _setting

from .test_backends import CALLS

explain = importlib.import_module("fbp_kernels.explain")  # the package has a function of that name
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both libraries were there, and Triton not interpreted."""
    monkeypatch.setattr(native, "CUDA_MISSING", "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)


def row(work: int, operator: str = "fbp", dtype: str = "half", **seconds: float) -> choice.Row:
    return choice.Row(operator, dtype, "made up", work, {"forward": seconds}, "Made Up 9000")


def am_fbp(
    B: int, C: int, D: int, O_G: int, K_G: int, H: int, O_M: int, K_M: int
) -> tuple[Tensor, ...]:
    """Inputs without memory."""
    shapes = [(B, C), (B, D), (B, H, C), (B, H, D), (C, O_G * K_G), (D, O_G * K_G)]
    shapes += [(H, C, O_M * K_M), (H, D, O_M * K_M)]
    return tuple(torch.empty(shape, dtype=HALF, device="meta") for shape in shapes)


CLIP = am_fbp(32, 256, 512, 128, 4, 8, 128, 4)
BATCH = am_fbp(256, 256, 512, 256, 5, 10, 256, 5)
WEB = am_fbp(8192, 1024, 1024, 1024, 4, 4, 512, 4)


def test_what_was_measured_decides() -> None:
    """The table's rows, said once more: one that is lost shows here."""
    chosen = [backends.resolve("am_fbp", None, "cuda", HALF, x) for x in (CLIP, BATCH, WEB)]
    assert chosen == ["native", "native", "triton"]
    measured = {(row.operator, row.dtype, row.label): row for row in choice.table()}
    for label, inputs in (("clip", CLIP), ("web", WEB)):
        step = backends.step("am_fbp", "cuda", HALF, inputs)
        assert step.why == f"measured: {measured['am_fbp', 'half', label]}"
        assert measured["am_fbp", "half", label].work == backends.work("am_fbp", inputs)
    clip = measured["am_fbp", "half", "clip"].seconds["forward"]
    assert clip["native"] < clip["triton"] < clip["reference"]


def test_the_table_is_written_as_it_is_read() -> None:
    rows = choice.table()
    assert choice.text(rows) == choice.TABLE.read_text("utf-8")
    assert len({(row.operator, row.dtype, row.label) for row in rows}) == len(rows)
    for one in rows:
        assert one.operator in fk.ops.__all__
        assert one.dtype in ("half", "float32")
        assert one.work > 0
        for seconds in one.seconds.values():
            assert seconds.keys() <= set(backends.BACKENDS)
            assert all(0 < value < 10 for value in seconds.values())
            assert "reference" in seconds, "whatever is compared is compared with it"


@pytest.mark.parametrize(
    ("seconds", "order"),
    [
        ({"native": 1.0, "triton": 2.0, "reference": 3.0}, ("native", "triton", "reference")),
        ({"native": 2.0, "triton": 1.0, "reference": 3.0}, ("triton", "native", "reference")),
        ({"triton": 1.0, "reference": 3.0}, ("triton", "native", "reference")),
        ({"native": 1.0, "reference": 3.0}, ("native", "triton", "reference")),
        ({"native": 1.2, "triton": 1.1, "reference": 1.0}, ("triton", "native", "reference")),
        ({"native": 1.3, "triton": 0.9, "reference": 1.0}, ("triton", "reference", "native")),
        ({"native": 1.5, "triton": 1.3, "reference": 1.0}, ("reference", "triton", "native")),
        ({"triton": 2.0, "reference": 1.0}, ("native", "reference", "triton")),
        ({"native": 1.0, "triton": 2.0}, ("native", "triton", "reference")),
    ],
)
def test_a_row_puts_the_fastest_first(seconds: dict[str, float], order: tuple[str, ...]) -> None:
    """And the reference before what loses to it by far, and what was not measured after what won."""
    assert row(1, **seconds).order == order


def test_forward_and_training_count_alike() -> None:
    both = replace(
        row(1),
        seconds={
            "forward": {"native": 1.0, "triton": 4.0, "reference": 8.0},
            "training": {"triton": 2.0, "native": 4.0, "reference": 4.0},
        },
    )
    assert both.share("native") == pytest.approx(math.sqrt(1 / 8))
    assert both.share("triton") == pytest.approx(1 / 2)
    assert both.share("reference") == 1


NATIVE = {"native": 1.0, "triton": 2.0, "reference": 3.0}
TRITON = {"native": 2.0, "triton": 1.0, "reference": 3.0}


def test_the_nearest_row_in_doublings_decides() -> None:
    rows = [row(2**30, **TRITON), row(2**10, **NATIVE), row(2**16, **TRITON)]
    steps = choice.steps("fbp", "half", rows)
    assert [step.work for step in steps] == [2**13, 2**23, math.inf]
    assert [step.order[0] for step in steps] == ["native", "triton", "triton"]


def test_rows_of_the_operator_in_the_dtype_go_before_others() -> None:
    mine, wide, kin = (
        row(2, **NATIVE),
        row(8, dtype="float32", **TRITON),
        row(4, "am_fbp", **TRITON),
    )
    (step,) = choice.steps("fbp", "half", [mine, wide, kin])
    assert (step.order[0], step.why) == ("native", f"measured: {mine}")
    (step,) = choice.steps("fbp", "half", [wide, kin])
    assert (step.order[0], step.why) == (
        "triton",
        f"not measured in half, so by the other dtypes: {wide}",
    )
    (step,) = choice.steps("trunk_fbp", "half", [wide, kin])
    assert step.why == f"trunk_fbp is not measured, so by those with the same kernels: {kin}"
    for step in choice.steps("batch_norm", "half", [mine, wide, kin]):
        assert step.why.startswith("batch_norm is not measured, and")


def test_what_nobody_measured_goes_by_what_a_launch_costs() -> None:
    small, large = choice.steps("local_response_norm", "half", [])
    assert (small.work, small.order[0]) == (choice.HIDDEN, "native")
    assert (large.work, large.order[0]) == (math.inf, "triton")

    def chosen(*shape: int) -> str:
        x = torch.empty(shape, dtype=HALF, device="meta")
        return backends.resolve("local_response_norm", None, "cuda", HALF, (x,))

    if any(one.operator == "local_response_norm" for one in choice.table()):
        pytest.skip("it has been measured since")
    assert chosen(8, 96, 50, 150) == "native", "12 MB, 3 us of an H200's memory"
    assert chosen(64, 96, 50, 150) == "triton"


@pytest.mark.parametrize("operator", CALLS)
def test_every_operator_tells_its_work(operator: str) -> None:
    """Twice the rows are twice the work; that of products is as the documentation has it."""
    inputs = [t for t in CALLS[operator] if isinstance(t, Tensor)]
    work = backends.work(operator, inputs)
    assert work > 0
    if operator in choice.SAME_KERNELS:
        return
    assert backends.work(operator, [torch.cat([inputs[0]] * 2), *inputs[1:]]) == 2 * work


def test_the_work_of_bilinear_pooling_is_that_of_its_products() -> None:
    B, C, D, N, H = 3, 5, 7, 8, 2
    a, v, p, q = (torch.empty(s, device="meta") for s in ((B, C), (B, D), (C, N), (D, N)))
    once = B * N * (C + D)
    assert backends.work("fbp", (a, v, p, q, None, None)) == once
    trunks = am_fbp(B, C, D, 2, 4, H, 3, 2)
    each = B * H * 6 * (C + D)
    assert backends.work("am_fbp", trunks) == once + each
    _, _, a, v, _, _, p, q = trunks
    assert backends.work("trunk_fbp", (a, v, p, q, None, None)) == each


@pytest.mark.parametrize("operator", fk.ops.__all__)
@pytest.mark.parametrize("dtype", ["half", "float32"])
def test_the_reference_is_no_silent_choice(operator: str, dtype: str) -> None:
    """It goes before a fused backend only where a measurement says that this loses by far."""
    for step in backends._steps[operator][dtype]:
        assert set(step.order) == set(backends.BACKENDS)
        behind = step.order[step.order.index("reference") + 1 :]
        (decided,) = [one for one in choice.table() if str(one) in step.why] or [row(1)]
        assert set(behind) == {b for b in choice.FUSED if (decided.share(b) or 0) > choice.FAR}


def test_what_cannot_run_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(inputs: Any) -> str:
        return backends.resolve("am_fbp", None, "cuda", HALF, inputs)

    assert backends.resolve("am_fbp", None, "cuda", torch.float64, CLIP) == "reference"
    assert backends.resolve("am_fbp", "triton", "cuda", HALF, CLIP) == "triton", "by name"
    with monkeypatch.context() as patch:
        patch.setattr(triton, "why_not", lambda *_: "Triton is not installed")
        assert (chosen(CLIP), chosen(WEB)) == ("native", "native")
    monkeypatch.setattr(native, "CUDA_MISSING", "no CUDA compiler was found")
    assert (chosen(CLIP), chosen(WEB)) == ("triton", "triton")


def test_the_cpu_has_no_table() -> None:
    x = torch.empty(1)
    for operator in fk.ops.__all__:
        assert backends.step(operator, "cpu", torch.float32, (x,)).order == backends.BACKENDS
    small, large = (backends.resolve("am_fbp", None, "cpu", HALF, x) for x in (CLIP, WEB))
    assert small == large == "native"


def test_arguments_that_do_not_fit_are_left_to_the_operator() -> None:
    for inputs in [(None, None), (torch.empty(2), torch.empty(2), torch.empty(()), None)]:
        assert backends.resolve("fbp", None, "cuda", HALF, inputs) == "triton"


def test_compilers_trace_the_choice() -> None:
    """Sizes that may change are compared with the table's; nothing breaks the graph."""

    def call(*inputs: Tensor) -> Tensor:
        chosen = backends.resolve("am_fbp", None, "cuda", HALF, inputs)
        return inputs[0].new_full((), {"native": 1.0, "triton": 2.0}[chosen])

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="eager")
    for inputs, number in ((CLIP, 1.0), (BATCH, 1.0), (WEB, 2.0)):
        real = [torch.empty(1).expand(t.shape) for t in inputs]
        assert compiled(*real).item() == number


def test_it_is_said_where_each_backend_comes_first() -> None:
    listed = {(s.operator, s.backend): s.first for s in fk.available_backends("cuda")}
    assert listed["am_fbp", "native"] == "up to 4.8e+09 multiply-adds"
    assert listed["am_fbp", "triton"] == "from 4.8e+09 multiply-adds"
    assert listed["am_fbp", "reference"] == ""
    assert not any(s.first for s in fk.available_backends("cpu"))
    ends = [row(2**10, **NATIVE), row(2**20, **TRITON), row(2**30, **NATIVE), row(2**40, **NATIVE)]
    steps = choice.steps("fbp", "half", ends)
    assert (
        backends._ranges(steps, "native")
        == "up to 3.3e+04 multiply-adds and from 3.4e+07 multiply-adds"
    )
    assert backends._ranges(steps, "triton") == "from 3.3e+04 to 3.4e+07 multiply-adds"
    assert backends._ranges(steps, "reference") == ""
    (one,) = choice.steps("fbp", "half", ends[:1])
    assert backends._ranges((one,), "native") == "for every size"


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Made Up 9000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def test_explanations_name_the_row_and_another_device(
    made_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = explain._StoppedError("native", torch.device("cuda"), HALF, ())
    said = explain._because("am_fbp", call, None, CLIP)
    assert said.startswith(
        "the first of native, triton, reference that can run this call; on a GPU measured: am_"
    )
    assert "native 28 us" in said
    lengths = torch.zeros(32, dtype=torch.int64)
    assert explain._because("am_fbp", call, None, (*CLIP, lengths)) == said
    assert said.endswith("; this is a Made Up 9000, of which nothing was measured")
    said = explain._because("batch_norm", call, None, (CLIP[0],))
    assert "on a GPU batch_norm is not measured, and native launches faster" in said
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    assert "nothing was measured" not in explain._because("am_fbp", call, None, CLIP)
    assert explain._because("am_fbp", call, "native", CLIP) == "the argument backend asks for it"


def test_the_doctor_prints_the_table(made_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor.report()
    for one in choice.table():
        assert str(one) in report
    assert "; of a Made Up 9000 nothing was measured" in report
    assert "native     yes, first up to 4.8e+09 multiply-adds" in report
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    assert "nothing was measured" not in doctor.report()


def test_an_accelerated_model_chooses_by_the_size_of_a_call_on_a_gpu() -> None:
    assert _setting("triton", None, "cuda") is None
    assert _setting("triton", "triton", "cuda") == "triton"
    assert _setting("reference", None, "cuda") == "reference"
    assert _setting("native", None, "cpu") == "native"
