"""Which backend a call gets: by the table, by the rule, and what is said of it. No GPU is asked."""

import importlib
import math
import timeit
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from avemo.models.backend import use_backend
from fbp_kernels import backends, choice, doctor, native, triton

from .test_backends import CALLS
from .test_registration import Recorder

explain = importlib.import_module("fbp_kernels.explain")  # the package has a function of that name
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both libraries were there, and Triton not interpreted; with the table as it is."""
    monkeypatch.setattr(backends, "_choices", {})
    backends.read_table()
    monkeypatch.setattr(native, "CUDA_MISSING", "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)


def row(
    work: int,
    operator: str = "fbp",
    dtype: str = "half",
    target: str = "cuda",
    mode: str = "forward",
    **seconds: float,
) -> choice.Row:
    return choice.Row(target, operator, dtype, "made up", work, {mode: seconds}, "Made Up 9000")


def steps(operator: str, dtype: str, rows: list[choice.Row]) -> tuple[choice.Step, ...]:
    return choice.choice("cuda", operator, dtype, rows).steps["forward"]


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
    measured = {row.key[1:]: row for row in choice.table() if row.target == "cuda"}
    for label, inputs in (("clip", CLIP), ("web", WEB)):
        step = backends.step("am_fbp", "cuda", HALF, inputs)
        assert step.why == f"measured: {measured['am_fbp', 'half', label]}"
        assert measured["am_fbp", "half", label].work == backends.work("am_fbp", inputs)
    clip = measured["am_fbp", "half", "clip"].seconds["forward"]
    assert clip["native"] < clip["triton"] < clip["reference"]


def test_the_table_is_written_as_it_is_read() -> None:
    rows = choice.table()
    assert choice.text(rows) == choice.TABLE.read_text("utf-8")
    assert len({row.key for row in rows}) == len(rows)
    for one in rows:
        assert one.operator in fk.ops.__all__
        gpu = one.target == "cuda"
        assert gpu or one.target in ("avx512_bf16", "avx512", "avx2", "portable")
        assert one.dtype in (("half", "float32") if gpu else ("float32", "bfloat16", "float16"))
        assert one.work > 0
        for seconds in one.seconds.values():
            assert seconds.keys() <= (set(backends.BACKENDS) if gpu else {"native", "reference"})
            assert all(0 < value < 10 for value in seconds.values())
            assert "reference" in seconds, "whatever is compared is compared with it"


@pytest.mark.parametrize(
    ("seconds", "order"),
    [
        ({"native": 1.0, "triton": 2.0, "reference": 3.0}, ("native", "triton", "reference")),
        ({"native": 2.0, "triton": 1.0, "reference": 3.0}, ("triton", "native", "reference")),
        ({"triton": 1.0, "reference": 3.0}, ("triton", "native", "reference")),
        ({"native": 1.0, "reference": 3.0}, ("native", "triton", "reference")),
        ({"native": 1.1, "triton": 0.9, "reference": 1.0}, ("triton", "reference", "native")),
        ({"native": 1.5, "triton": 1.1, "reference": 1.0}, ("reference", "triton", "native")),
        ({"native": 1.0, "triton": 0.9, "reference": 1.0}, ("triton", "native", "reference")),
        ({"triton": 2.0, "reference": 1.0}, ("native", "reference", "triton")),
        ({"native": 1.0, "triton": 2.0}, ("native", "triton", "reference")),
    ],
)
def test_a_row_puts_the_fastest_first(seconds: dict[str, float], order: tuple[str, ...]) -> None:
    """And the reference before what loses to it, and what was not measured after what won."""
    assert row(1, **seconds).order("forward") == order


def test_each_mode_goes_by_its_own_times_and_what_it_lacks_by_the_other() -> None:
    both = replace(
        row(1),
        seconds={
            "forward": {"native": 4.0, "triton": 8.0, "reference": 2.0},
            "training": {"native": 1.0, "reference": 4.0},
        },
    )
    assert (both.share("native", "forward"), both.share("native", "training")) == (2, 1 / 4)
    assert both.share("triton", "training") == 4
    assert both.order("forward") == ("reference", "native", "triton")
    assert both.order("training") == ("native", "reference", "triton")
    alone = row(1, mode="training", **NATIVE)
    assert alone.order("forward") == alone.order("training") == ("native", "triton", "reference")


def test_on_a_processor_triton_comes_last() -> None:
    won, lost = (row(1, target="avx2", native=n, reference=2.0) for n in (1.0, 3.0))
    assert won.order("forward") == ("native", "reference", "triton")
    assert lost.order("forward") == ("reference", "native", "triton")
    assert (won.loses, lost.loses) == (False, True)


NATIVE = {"native": 1.0, "triton": 2.0, "reference": 3.0}
TRITON = {"native": 2.0, "triton": 1.0, "reference": 3.0}


def test_the_nearest_row_in_doublings_decides() -> None:
    rows = [row(2**30, **TRITON), row(2**10, **NATIVE), row(2**16, **TRITON)]
    found = steps("fbp", "half", rows)
    assert [step.work for step in found] == [2**13, 2**23, math.inf]
    assert [step.order[0] for step in found] == ["native", "triton", "triton"]


def test_rows_of_the_operator_in_the_dtype_go_before_others() -> None:
    mine, wide, kin = (
        row(2, **NATIVE),
        row(8, dtype="float32", **TRITON),
        row(4, "am_fbp", **TRITON),
    )
    (step,) = steps("fbp", "half", [mine, wide, kin])
    assert (step.order[0], step.why) == ("native", f"measured: {mine}")
    (step,) = steps("fbp", "half", [wide, kin])
    assert (step.order[0], step.why) == (
        "triton",
        f"not measured in half, so by the other dtypes: {wide}",
    )
    (step,) = steps("trunk_fbp", "half", [wide, kin])
    assert step.why == f"trunk_fbp is not measured, so by those with the same kernels: {kin}"
    for step in steps("batch_norm", "half", [mine, wide, kin]):
        assert step.why.startswith("batch_norm is not measured, and")


def test_float32_stands_for_dtypes_that_were_not_measured() -> None:
    rows = [
        row(2, dtype="bfloat16", target="avx2", native=3.0, reference=1.0),
        row(2, dtype="float32", target="avx2", native=1.0, reference=2.0),
        row(2, "am_fbp", "float16", target="avx2", native=3.0, reference=1.0),
    ]

    def first(operator: str, dtype: str, target: str = "avx2") -> tuple[str, str]:
        found = choice.choice(target, operator, dtype, rows).step("forward")
        return found.order[0], found.why

    assert first("fbp", "bfloat16")[0] == "reference"
    assert first("fbp", "float16") == (
        "native",
        f"not measured in float16, so by the other dtypes: {rows[1]}",
    )
    assert first("trunk_fbp", "float16")[0] == "reference", "by the dtype of those of its kernels"
    assert first("fbp", "bfloat16", "avx512") == (
        "native",
        "fbp is not measured, and its kernel was written to be faster",
    )


def test_what_nobody_measured_goes_by_what_a_launch_costs() -> None:
    small, large = steps("local_response_norm", "half", [])
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
    assert backends.work("fbp", (a, v, p, q)) == once
    trunks = am_fbp(B, C, D, 2, 4, H, 3, 2)
    each = B * H * 6 * (C + D)
    assert backends.work("am_fbp", trunks) == once + each
    _, _, a, v, _, _, p, q = trunks
    assert backends.work("trunk_fbp", (a, v, p, q, None, None)) == each


@pytest.mark.parametrize("operator", fk.ops.__all__)
@pytest.mark.parametrize("dtype", ["half", "float32"])
def test_the_reference_is_no_silent_choice(operator: str, dtype: str) -> None:
    """It goes before a fused backend only where a measurement says that this is slower."""
    for mode, found in choice.choice("cuda", operator, dtype).steps.items():
        for step in found:
            assert set(step.order) == set(backends.BACKENDS)
            if operator in choice.OF_VENDORS and "is not measured" in step.why:
                assert step.order[0] == "reference"
                continue
            behind = step.order[step.order.index("reference") + 1 :]
            (decided,) = [one for one in choice.table() if str(one) in step.why] or [row(1)]
            assert set(behind) == {
                b for b in ("native", "triton") if (decided.share(b, mode) or 0) > 1
            }


CPU_ROWS = [row for row in choice.table() if row.target != "cuda"]


@pytest.mark.parametrize("measured", CPU_ROWS, ids=lambda row: " ".join(row.key))
def test_no_call_on_a_processor_gets_a_kernel_that_was_measured_to_be_slower(
    measured: choice.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: by inputs of the row's work to its times."""
    monkeypatch.setitem(backends.TARGETS, "cpu", measured.target)
    monkeypatch.setattr(backends, "_choices", {})
    backends.read_table()
    monkeypatch.setitem(backends._work, measured.operator, lambda *_: measured.work)
    x = torch.empty(1, dtype=getattr(torch, measured.dtype))
    for mode, seconds in measured.seconds.items():
        inputs = (x.requires_grad_(mode == "training"),)
        step = backends.step(measured.operator, "cpu", x.dtype, inputs)
        assert step.why.startswith("measured: ")
        chosen = backends.resolve(measured.operator, None, "cpu", x.dtype, inputs)
        alike = [r for r in CPU_ROWS if r.key[:3] == measured.key[:3] and r.work == measured.work]
        assert chosen == step.order[0]
        assert any(r.order(mode)[0] == chosen for r in alike)
        if len(alike) == 1:
            assert seconds[chosen] == min(seconds.values())


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> choice.Row:
    """As if large forwards of fbp in float32 were slower than PyTorch, and nothing else was measured."""
    target = backends.TARGETS["cpu"]
    small = row(2**10, "fbp", "float32", target, native=1.0, reference=2.0)
    large = row(2**20, "fbp", "float32", target, native=2.0, reference=1.0)
    large.seconds["training"] = {"native": 1.0, "reference": 2.0}
    monkeypatch.setattr(choice, "measured", lambda: [small, large])
    monkeypatch.setattr(backends, "_choices", {})
    backends.read_table()
    return large


def inputs_of(work: int, *, grad: bool = False) -> tuple[Tensor, ...]:
    rows = work // (8 * 16)
    shapes = (rows, 4), (rows, 4), (4, 16), (4, 16)
    drawn = tuple(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes
    )
    return tuple(t.requires_grad_(grad) for t in drawn)


def ran(call: Any) -> list[str]:
    """The backends of the operators that a call came to; none where plain PyTorch did it."""
    recorder = Recorder()
    with recorder:
        call()
    return [arguments[-1] for _, arguments in recorder.calls]


def test_what_lost_on_a_processor_is_left_to_pytorch_and_said(losing: choice.Row) -> None:
    """By size, dtype and mode; and whoever ran the forward runs the backward."""
    small, large = inputs_of(2**10), inputs_of(2**20)
    assert torch.equal(fk.fbp(*large, 2), fk.reference.fbp(*large, 2))
    assert torch.equal(fk.fbp(*small, 2), fk.fbp(*small, 2, backend="native"))
    assert ran(lambda: fk.fbp(*small, 2)) == ["native"]
    assert ran(lambda: fk.fbp(*large, 2)) == []
    assert ran(lambda: fk.fbp(*(t.bfloat16() for t in large), 2)) == [], "not measured: by float32"
    due = inputs_of(2**20, grad=True)
    assert ran(lambda: fk.fbp(*due, 2).sum().backward()) == ["native", "native"]
    with torch.no_grad():
        assert ran(lambda: fk.fbp(*due, 2)) == []
    got = fk.explain("fbp", *large, 2)
    assert got.backend == "reference"
    assert got.because.endswith(f"; with {losing.target} measured: {losing}")
    assert "made up" in fk.explain("fbp", *small, 2).because
    assert f"measured: {losing}" not in fk.explain("fbp", *small, 2).because, "its own size decides"
    assert got.others["native"] == "reference comes first"
    assert fk.explain("fbp", *due, 2).backend == "native"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrowed = fk.explain("fbp", *large, 2)
    assert (narrowed.backend, narrowed.dtype) == ("reference", torch.bfloat16)
    assert "not measured in bfloat16" in narrowed.because
    (status,) = [
        s for s in fk.available_backends() if (s.operator, s.backend) == ("fbp", "reference")
    ]
    assert status.first == (
        "from 3.3e+04 multiply-adds in float32 forward; from 3.3e+04 multiply-adds in bfloat16 forward"
    )
    assert f"    {losing}" in doctor.report().splitlines()
    report = fk.accelerate(fk.FactorizedBilinearPooling(4, 4, 8, 2))
    assert [entry.backend for entry in report] == ["native"]


def test_an_accelerated_model_chooses_call_by_call_and_says_so(losing: choice.Row) -> None:
    model = fk.FactorizedBilinearPooling(4, 4, 8, 2, backend="reference")
    said = use_backend(model)
    assert said.startswith("native: fbp; plain PyTorch where nothing faster was measured: fbp fr")
    assert model.backend is None
    a, v, *_ = inputs_of(2**20)
    with torch.no_grad():
        assert ran(lambda: model(a, v)) == []
        assert ran(lambda: model(a[:8], v[:8])) == ["native"]
    assert ran(lambda: model(a, v)) == ["native"]
    assert use_backend(model, "native") == "native: fbp"
    with torch.no_grad():
        assert ran(lambda: model(a, v)) == ["native"]


def test_compiled_and_repeated_calls_choose_alike(losing: choice.Row) -> None:
    graphs: list[str] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module.code)
        return module

    for work in (2**10, 2**20):
        for grad in (False, True):
            torch._dynamo.reset()
            compiled = torch.compile(lambda *x: fk.fbp(*x, 2), fullgraph=True, backend=keep)
            inputs = inputs_of(work, grad=grad)
            first = fk.fbp(*inputs, 2)
            assert torch.equal(first, fk.fbp(*inputs, 2))
            assert torch.equal(first, compiled(*inputs))
            fused = "native" in ran(lambda: fk.fbp(*inputs, 2))  # noqa: B023
            assert ("fbp_kernels" in graphs[-1]) == fused == (grad or work == 2**10)


def test_the_choice_costs_less_than_a_microsecond(losing: choice.Row) -> None:
    """Beside what is asked of the environment; ten times as much here, for a busy machine."""
    inputs = inputs_of(2**20)

    def best(call: Any) -> float:
        return min(timeit.repeat(call, number=2000, repeat=20)) / 2000

    chosen = best(lambda: backends.resolve("fbp", None, "cpu", torch.float32, inputs))
    asked = best(lambda: backends.resolve("fbp", "native", "cpu", torch.float32, inputs))
    assert chosen - asked < 10e-6


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
    assert not any(s.first for s in fk.available_backends("mps"))
    ends = [row(2**10, **NATIVE), row(2**20, **TRITON), row(2**30, **NATIVE), row(2**40, **NATIVE)]
    several = steps("fbp", "half", ends)
    assert (
        backends._ranges(several, "native")
        == "up to 3.3e+04 multiply-adds and from 3.4e+07 multiply-adds"
    )
    assert backends._ranges(several, "triton") == "from 3.3e+04 to 3.4e+07 multiply-adds"
    assert backends._ranges(several, "reference") == ""
    (one,) = steps("fbp", "half", ends[:1])
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
    here = ("cuda", backends.TARGETS["cpu"])
    for one in choice.table():
        shown = one.target == "cuda" or one.loses
        assert (str(one) in report) == (shown and one.target in here)
    assert "; of a Made Up 9000 nothing was measured" in report
    assert "native     yes, first up to 4.8e+09 multiply-adds" in report
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    assert "H200 nothing was measured" not in doctor.report()
