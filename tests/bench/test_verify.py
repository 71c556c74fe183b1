"""A wrong contender is found out before it is timed."""

import ctypes
import math
import platform
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import contenders, device, memory, verify
from bench.contenders import UnavailableError
from bench.operators import OPERATORS, SUBJECTS, Draw, variants
from bench.operators.call import leaves, rounding
from bench.plan import OperatorPlan, Settings
from bench.timing import CpuClock
from fbp_kernels import backends, reference, tf32

PLAN = OperatorPlan("fbp", "tiny", OPERATORS["fbp"].sizes["tiny"], "float32", "training", "cpu")


def test_errors_within_the_rule_pass_and_larger_ones_do_not() -> None:
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    reference = (truth + 1e-3).float()
    errors = verify.Errors(verify.correct)
    errors.add(((truth + 1.9e-3).float(),), (reference,), (truth,))
    errors.check()
    assert 0.9 < errors.worst() < 1
    errors.add(((truth + 2.1e-3).float(),), (reference,), (truth,))
    with pytest.raises(verify.WrongResultError, match="result 0 is off by 2"):
        errors.check()


def test_an_error_where_none_is_allowed_is_a_share_of_infinity() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    errors = verify.Errors(verify.correct)
    errors.add((torch.tensor([0.0, 1e-9]),), (zero.float(),), (zero,))
    assert errors.worst() == math.inf


def test_one_unit_of_tf32_is_allowed_where_pytorch_did_not_round() -> None:
    """Of the output's scale, which is 4 here, and of results in float32 alone that are said to be such."""
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    for off, spared, right in (
        (0.99 * 4 * 2**-10, True, True),
        (1.01 * 4 * 2**-10, True, False),
        (0.99 * 4 * 2**-10, False, False),
    ):
        errors = verify.Errors(verify.correct)
        got, plain = (truth + off).float(), truth.float()
        errors.add((plain, got), (plain, plain), (truth, truth), (False, spared))
        assert (errors.worst() <= 1) is right, (off, spared)


@pytest.mark.parametrize(
    ("label", "dtype", "right"),
    [("one", "tf32", True), ("one", "float32", False), ("tiny", "tf32", False)],
)
def test_only_sizes_of_1_in_tf32_may_round_where_pytorch_does_not(
    label: str, dtype: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = backends.kernel("fbp", "native")

    def rounds(*arguments: object) -> tuple[Tensor, ...]:
        pooled, *kept = kernel.forward(*arguments)
        return (pooled * (1 + 2**-11), *kept)

    monkeypatch.setitem(
        backends._kernels["fbp"], "native", backends.Kernel(rounds, kernel.backward)
    )
    plan = OperatorPlan("fbp", label, OPERATORS["fbp"].sizes[label], dtype, "forward", "cpu")
    assert ("native" in plan.check(["native"]).ready) is right


def test_what_pytorch_rounds_is_held_to_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size of 1, too, where the reference gives other bits with TF32 than without."""
    plan = OperatorPlan("fbp", "one", OPERATORS["fbp"].sizes["one"], "tf32", "forward", "cpu")
    eager = reference.fbp

    def rounding_eager(*arguments: Any, **how: Any) -> Tensor:
        rounded = tf32.allowed()
        doubles = arguments[0].dtype == torch.float64
        return eager(*arguments, **how) * (1 + 2**-20 * (rounded and not doubles))

    call, cot = plan._inputs(0)
    assert plan._unrounded(call, cot, (call.reference(*call.tensors),)) == (True,)
    monkeypatch.setattr(reference, "fbp", rounding_eager)
    with rounding("tf32"):
        plain = (call.reference(*call.tensors),)
    assert plan._unrounded(call, cot, plain) == (False,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_wrong(value: float) -> None:
    truth = torch.zeros(3, dtype=torch.float64)
    got = torch.tensor([0.0, value, value])
    with pytest.raises(verify.WrongResultError, match="result 0 has 2 of 3 elements"):
        verify.Errors(verify.correct).add((got,), (truth.float(),), (truth,))


def test_a_missing_result_and_a_wrong_shape_are_wrong() -> None:
    truth = torch.zeros(3, dtype=torch.float64)
    errors = verify.Errors(verify.correct)
    with pytest.raises(verify.WrongResultError, match="gave 0 results, expected 1"):
        errors.add((), (truth.float(),), (truth,))
    with pytest.raises(verify.WrongResultError, match=r"shape \(3, 1\), expected \(3,\)"):
        errors.add((torch.zeros(3, 1),), (truth.float(),), (truth,))


def test_fresh_memory_is_poisoned_and_only_inside() -> None:
    with verify.poisoned_memory():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a service of GNU's C library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_memory_of_the_c_library_is_poisoned_and_only_inside(dtype: torch.dtype) -> None:
    """From there the native kernels' results come."""
    with verify.poisoned_memory():
        assert _aligned(8000).view(dtype).isnan().all()
    assert not _aligned(8000).view(dtype).isnan().all()


def _aligned(size: int) -> torch.Tensor:
    """What fresh memory holds."""
    library = ctypes.CDLL(None)
    address = ctypes.c_void_p()
    assert (
        library.posix_memalign(ctypes.byref(address), ctypes.c_size_t(64), ctypes.c_size_t(size))
        == 0
    )
    held = torch.frombuffer(bytearray(ctypes.string_at(address, size)), dtype=torch.uint8)
    ctypes.memset(address, 0, size)  # for the next to find, where nothing fills it
    library.free(address)
    return held


def _settings() -> Settings:
    return Settings("cpu", 0.0, CpuClock())


def test_a_right_kernel_is_timed_against_its_peers() -> None:
    outcome = PLAN.measure(["native", "eager"], _settings())
    assert not outcome.wrong
    ours = outcome.case.contenders["native"]
    assert set(ours.ratios) == {"eager"}
    assert ours.turns == len(outcome.samples["native"]) > 0
    assert outcome.case.contenders["eager"].ratios == {}
    sizes = OPERATORS["fbp"].sizes["tiny"]
    B, C, D, N = sizes["B"], sizes["C"], sizes["D"], sizes["O"] * sizes["K"]
    assert outcome.case.flops == 3 * 2 * B * N * (C + D)
    moved = B * (C + D) + N * (C + D) + B * sizes["O"]
    assert outcome.case.bytes == 2 * 4 * moved


@pytest.mark.parametrize("fault", ["one element off", "an element not written"])
def test_a_wrong_kernel_has_no_time(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    kernel = backends.kernel("fbp", "native")

    def broken(*arguments: object) -> tuple[Tensor, ...]:
        pooled, *kept = kernel.forward(*arguments)
        if fault == "one element off":
            pooled[-1, -1] += 1e-3
        else:
            written, pooled = pooled, torch.empty_like(pooled)
            pooled[:-1] = written[:-1]
        return (pooled, *kept)

    monkeypatch.setitem(
        backends._kernels["fbp"], "native", backends.Kernel(broken, kernel.backward)
    )
    outcome = PLAN.measure(["native", "eager"], _settings())
    assert "native" in outcome.wrong
    assert "native" not in outcome.case.contenders
    assert outcome.case.left_out["native"].startswith("wrong: result 0")
    assert "eager" in outcome.case.contenders


def test_bits_that_do_not_repeat_are_wrong_though_each_run_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = backends.kernel("fbp", "native")
    runs = 0

    def racing(*arguments: object) -> tuple[Tensor, ...]:
        nonlocal runs
        runs += 1
        pooled, *kept = kernel.forward(*arguments)
        if runs % 2:
            pooled[-1, -1] = pooled[-1, -1].nextafter(torch.tensor(torch.inf))
        return (pooled, *kept)

    monkeypatch.setitem(
        backends._kernels["fbp"], "native", backends.Kernel(racing, kernel.backward)
    )
    checked = PLAN.check(["native", "eager"])
    assert checked.wrong == {
        "native": "result 0 has 1 of 12 elements that another run gives otherwise"
    }
    assert checked.worst["native"] < 1


def test_a_replayed_graph_that_writes_over_its_results_is_compared_with_what_they_were() -> None:
    kept = (torch.zeros(3),)

    def replay() -> tuple[Tensor, ...]:
        kept[0].add_(1)
        return kept

    with pytest.raises(verify.WrongResultError, match="result 0 has 3 of 3 elements"):
        verify.require_same_bits(replay(), replay)


def test_what_cannot_run_is_left_out_with_its_reason() -> None:
    sizes = OPERATORS["batch_norm"].sizes["tiny"]
    plan = OperatorPlan("batch_norm", "tiny", sizes, "float32", "forward", "cpu")
    checked = plan.check(["triton"])
    assert "no triton kernel for batch_norm" in checked.left_out["triton"]
    assert not checked.ready


def test_what_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> object:
        raise RuntimeError("out of resource\nat line 3")

    kernel = backends.kernel("fbp", "native")
    monkeypatch.setitem(
        backends._kernels["fbp"], "native", backends.Kernel(broken, kernel.backward)
    )
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    checked = PLAN.check(["native", "compile", "eager"])
    assert checked.wrong == {"native": "fails: RuntimeError: out of resource"}
    assert checked.left_out == {"compile": "fails: RuntimeError: out of resource"}
    assert list(checked.ready) == ["eager"]


def test_without_a_reference_nothing_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reference, "fbp", broken)
    call = SUBJECTS["fbp"].make(PLAN.sizes, Draw(PLAN.dtype))
    inputs = (call, (torch.ones(3, 4),))  # to know their shape takes the reference
    monkeypatch.setattr(OperatorPlan, "_inputs", lambda *_, **__: inputs)
    checked = PLAN.check(["native", "eager"])
    why = "cannot be compared, the reference fails: RuntimeError: out of memory"
    assert (checked.wrong, checked.left_out) == ({"native": why}, {"eager": why})
    assert not checked.ready


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where it is the reference that asks for too much; of ours it is a failure."""

    def too_much(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    kernel = backends.kernel("fbp", "native")
    broken = backends.Kernel(too_much, kernel.backward)
    with monkeypatch.context() as patch:
        patch.setitem(backends._kernels["fbp"], "native", broken)
        assert "native" in PLAN.check(["native"]).wrong
    call = SUBJECTS["fbp"].make(PLAN.sizes, Draw(PLAN.dtype))
    inputs = (call, (torch.ones(3, 4),))
    monkeypatch.setattr(OperatorPlan, "_inputs", lambda *_, **__: inputs)
    monkeypatch.setattr(reference, "fbp", too_much)
    checked = PLAN.check(["native"])
    assert "the reference fails: OutOfMemoryError" in checked.left_out["native"]
    assert not checked.wrong


def test_a_lost_device_ends_the_case_and_names_who_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> object:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    kernel = backends.kernel("fbp", "native")
    monkeypatch.setitem(backends._kernels["fbp"], "native", backends.Kernel(lost, kernel.backward))
    # An error that the device forgets is the contender's alone: it may have asked for too much.
    assert "native" in PLAN.check(["native", "eager"]).wrong
    monkeypatch.setattr(device, "answers", lambda name: False)
    with pytest.raises(device.DeviceLostError, match="native fails: AcceleratorError: an illegal"):
        PLAN.check(["native", "eager"])


def test_a_device_answers_unless_an_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    assert device.answers("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert device.answers("cpu")
    assert not device.answers("cuda")


def test_a_backend_is_told_to_keep_where_it_would_not() -> None:
    sizes = OPERATORS["fbp"].sizes["tiny"]
    call = OPERATORS["fbp"].make(sizes, Draw("float32"))
    names = contenders.names(call, "training", "cuda")
    assert {"triton keep", "triton recompute", "triton graph", "eager graph"} <= set(names)
    assert {"native keep", "native recompute"} <= set(names)
    assert "products graph" in contenders.names(call, "forward", "cuda")
    assert "triton keep" not in contenders.names(call, "forward", "cuda")
    assert "triton keep" not in contenders.names(call, "training", "cpu")
    cot = (torch.ones(sizes["B"], sizes["O"]),)
    with pytest.raises(UnavailableError, match="that is what triton does here"):
        contenders.prepare("triton keep", call, "training", cot)
    told = contenders.prepare("triton recompute", call, "training", cot)
    given = leaves(told.tensors)
    assert memory.kept_bytes(lambda: told.function(*given), given) == 0


@pytest.mark.slow
@pytest.mark.parametrize("operator", sorted(SUBJECTS))
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_every_contender_that_compiles_nothing_computes_the_operator(
    operator: str, mode: str
) -> None:
    sizes = SUBJECTS[operator].sizes["tiny"]
    plan = OperatorPlan(operator, "tiny", sizes, "float32", mode, "cpu")
    names = [n for n in plan.contenders if n not in ("compile", "max-autotune")]
    checked = plan.check(names)
    assert not checked.wrong
    assert "eager" in checked.ready


def test_peers_compute_what_we_do() -> None:
    """The bare products are the projections of the operator that they stand beside."""
    sizes = OPERATORS["trunk_fbp"].sizes["tiny"]
    call = OPERATORS["trunk_fbp"].make(sizes, Draw("float32"))
    u, w = call.bare["products"]()
    pooled = (u * w).sum(0).unflatten(1, (sizes["O"], sizes["K"])).sum(2)
    torch.testing.assert_close(pooled, contenders.forward(call.reference, call.tensors)()[0])


def test_a_peer_needs_half_of_the_digits() -> None:
    eps = torch.finfo(torch.float32).eps
    assert verify.correct(3.0, 100.0, eps) == 6 + 100 * eps
    assert verify.alike(0.0, 100.0, eps) == pytest.approx(100 * 3.45e-4, rel=1e-2)


def test_products_round_for_tf32_alone_and_only_inside() -> None:
    before = tf32.allowed()
    for dtype in ("tf32", "float32", "bfloat16"):
        with rounding(dtype):
            assert tf32.allowed() is (dtype == "tf32")
        assert tf32.allowed() is before


def test_lengths_of_variants_go_from_none_to_all() -> None:
    assert variants._lengths(3, 2, Draw("float32")).tolist() == [2, 0, 1]
    assert set(variants._lengths(32, 8, Draw("float32")).tolist()) == set(range(9))


def test_a_variant_that_drops_uses_one_mask_for_all() -> None:
    sizes = SUBJECTS["am_fbp_ragged"].sizes["tiny"]
    call = SUBJECTS["am_fbp_ragged"].make(sizes, Draw("float32"))
    first, second = call.reference(*call.tensors), call.reference(*call.tensors)
    assert isinstance(first, Tensor)
    assert torch.equal(first, second)
    plain = OPERATORS["am_fbp"].make(sizes, Draw("float32"))
    assert not torch.equal(first, plain.reference(*plain.tensors))
