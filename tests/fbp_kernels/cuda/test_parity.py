"""The CUDA kernels against the float64 reference, over drawn shapes, strides, dtypes and options, through the shim."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import fbp_kernels as fk
from tests.marks import slow

from .. import cases
from ..cases import Case, Scope, over_examples
from ..checks import Errors, assert_parity, error, evaluate
from .shim import ORDERS, Shim

PRODUCTS = ("fbp", "trunk_fbp", "am_fbp", "attention_pool")
OPERATORS = (*PRODUCTS, "local_response_norm", "batch_norm", "power_normalize")

# Tiles of the kernels are 16 to 128 wide: these sizes have one, and several.
SCOPE = Scope(
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    batch=st.integers(0, 5) | st.sampled_from([16, 17, 33]),
    width=st.integers(1, 20) | st.sampled_from([32, 33, 65]),
    outputs=st.integers(1, 9) | st.sampled_from([16, 37]),
    channels=st.integers(1, 12) | st.sampled_from([31, 33, 70]),
    positions=st.integers(1, 5) | st.just(11),
    examples=16,
    draws=4,
)


@pytest.fixture(autouse=True)
def scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.SCOPES, "shim", SCOPE)


@pytest.mark.parametrize("operator", slow(OPERATORS, "fbp", "trunk_fbp"))
def test_results_and_gradients_match_float64(shim: Shim, operator: str) -> None:
    def check(case: Case) -> None:
        assert_parity(case.operator, case.draw, case.arguments, "native", draws=SCOPE.draws)

    over_examples(operator, "shim", check)


@pytest.mark.parametrize("operator", OPERATORS)
def test_bit_identical_whatever_the_order_of_blocks(shim: Shim, operator: str) -> None:
    def check(case: Case) -> None:
        inputs = case.draw(0)

        def run(order: str) -> dict[str, Tensor]:
            shim.fixed_order = (order, 5)
            torch.manual_seed(3)
            call = partial(case.operator, **case.arguments, backend="native")
            return evaluate(call, inputs, 1, case.dtype)

        first = run(ORDERS[0])
        for order in ORDERS[1:]:
            for name, value in run(order).items():
                assert torch.equal(value, first[name]), name

    over_examples(operator, "shim", check, examples=8)


def exact_in_tf32(tensor: Tensor) -> Tensor:
    """The numbers with the ten binary digits that TF32 has."""
    return (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("operator", PRODUCTS)
def test_tf32_is_exact_where_it_has_the_digits(shim: Shim, operator: str) -> None:
    """And shows where it has not; forward, for what the backward multiplies has more digits than the inputs."""
    float32 = replace(SCOPE, dtypes=(torch.float32,))
    differing = 0

    def check(case: Case) -> None:
        nonlocal differing
        errors: dict[int, Errors] = {}
        for seed in range(SCOPE.draws):
            inputs = [None if t is None else exact_in_tf32(t) for t in case.draw(seed)]

            def results(
                *tensors: Tensor | None, backend: str = "reference", seed: int = seed
            ) -> list[Tensor]:
                torch.manual_seed(seed)
                found = case.operator(*tensors, **case.arguments, backend=backend)
                return list(found) if isinstance(found, tuple) else [found]

            truth = results(*(None if t is None else t.double() for t in inputs))
            shim.tf32(True)
            got = results(*inputs, backend="native")
            more_digits = results(*case.draw(seed), backend="native")
            shim.tf32(False)
            plain = results(*case.draw(seed), backend="native")
            differing += any(not torch.equal(a, b) for a, b in zip(more_digits, plain, strict=True))
            for i, (ours, exact, theirs) in enumerate(
                zip(got, truth, results(*inputs), strict=True)
            ):
                errors.setdefault(i, Errors()).add(ours, exact, error(theirs, exact))
        for i, found in errors.items():
            found.assert_within_rule(f"{operator} result {i}")

    cases.SCOPES["shim"] = float32  # until the end of the test
    over_examples(operator, "shim", check, examples=8)
    assert differing > 0


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("dropout", [0.25, 0.5])
def test_the_dropout_mask_is_the_references(shim: Shim, factor: int, dropout: float) -> None:
    """Everything is 1, so that results count what is kept, exactly."""
    B, H, O = 37, 3, 23
    ones = (torch.ones(s) for s in [(B, 1)] * 2 + [(B, H, 1)] * 2 + [(1, O * factor)] * 2)
    trunks = (torch.ones(H, 1, O * factor) for _ in range(2))
    inputs = [*ones, *trunks]
    results = []
    for backend in ("native", "reference"):
        torch.manual_seed(11)
        z = fk.am_fbp(
            *inputs,
            factor=factor,
            trunk_factor=factor,
            dropout=dropout,
            training=True,
            backend=backend,
        )
        results.append((z * (1 - dropout)).round())
    assert torch.equal(*results)
    assert 0 < (results[1] < factor).float().mean() < 1
