"""The rule of correctness, in one place: error against float64 at most twice the reference's plus one ulp."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FUSED = ("native",)

Inputs = Sequence[Tensor | None]


def error(got: Tensor, truth: Tensor) -> float:
    """The largest absolute error, in float64; 0 for empty tensors."""
    assert got.shape == truth.shape, (got.shape, truth.shape)
    assert got.isfinite().all()
    return (got.double() - truth).abs().max().item() if got.numel() else 0.0


@dataclass
class Errors:
    """Largest errors of one result over several draws of its inputs, and its largest value.

    Attributes:
        ours: of the backend under test.
        reference: of the reference in the same dtype.
        scale: largest absolute value of the truth.
        dtype: of the result.
    """

    ours: float = 0.0
    reference: float = 0.0
    scale: float = 0.0
    dtype: torch.dtype = field(default=torch.float32)

    def add(self, got: Tensor, truth: Tensor, reference_error: float) -> None:
        self.ours = max(self.ours, error(got, truth))
        self.reference = max(self.reference, reference_error)
        self.scale = max(self.scale, truth.abs().max().item() if truth.numel() else 0.0)
        self.dtype = got.dtype

    def assert_within_rule(self, name: str) -> None:
        allowed = 2 * self.reference + torch.finfo(self.dtype).eps * self.scale
        assert self.ours <= allowed, (
            f"{name}: error {self.ours:.3e}, allowed {allowed:.3e} at scale {self.scale:.3e}"
        )


def evaluate(call: Callable[..., Any], inputs: Inputs, cotangent: Tensor) -> dict[str, Tensor]:
    """The results by name, the first of them differentiated by every input under one cotangent."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    results = call(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    there = {f"gradient {i}": t for i, t in enumerate(leaves) if t is not None}
    gradients = torch.autograd.grad(
        results[0], list(there.values()), cotangent.to(results[0].dtype)
    )
    named = {f"result {i}": t.detach() for i, t in enumerate(results)}
    return named | dict(zip(there, gradients, strict=True))


def assert_parity(
    operator: Callable[..., Any],
    draw: Callable[[int], Inputs],
    arguments: dict[str, Any],
    outputs: tuple[int, ...],
    backend: str,
    draws: int = 1,
) -> None:
    """Result and gradients of a backend against the float64 truth, by the rule.

    Args:
        operator: called with the inputs, the arguments and a backend; of several results the first is
            differentiated.
        draw: inputs by seed.
        arguments: everything that is not differentiated.
        outputs: shape of the first result.
        backend: the one under test.
        draws: how many draws the largest errors are taken over. The error of one small result is the luck of
            a rounding or two; the rule compares what the errors amount to.
    """
    keeps = operator.__name__.endswith("fbp")
    variants: list[dict[str, Any]] = (
        [{"keep_projections": k} for k in (True, False)] if keeps else [{}]
    )
    found: dict[str, Errors] = {}
    for seed in range(draws):
        inputs = draw(seed)
        dtype = next(t.dtype for t in inputs if t is not None)
        generator = torch.Generator().manual_seed(seed)
        # Rounded to the dtype first, so that all see the same numbers.
        cotangent = (
            torch.randn(outputs, generator=generator, dtype=torch.float64).to(dtype).double()
        )

        def run(dtype: torch.dtype, inputs: Inputs = inputs, **options: Any) -> dict[str, Tensor]:
            # `to` keeps strides, which are part of the case, and is exact towards float64.
            cast = [None if t is None else t.to(dtype) for t in inputs]
            torch.manual_seed(seed)  # noqa: B023 (the same dropout mask for all)
            return evaluate(lambda *t: operator(*t, **arguments, **options), cast, cotangent)  # noqa: B023

        truth = run(torch.float64, backend="reference")
        reference = reference_errors(run, dtype, inputs, truth)
        for variant in variants:
            got = run(dtype, backend=backend, **variant)
            assert got.keys() == truth.keys()
            for name in got:
                errors = found.setdefault(f"{operator.__name__} {variant} {name}", Errors())
                errors.add(got[name], truth[name], reference[name])
    for name, errors in found.items():
        errors.assert_within_rule(name)


def reference_errors(
    run: Callable[..., dict[str, Tensor]],
    dtype: torch.dtype,
    inputs: Inputs,
    truth: dict[str, Tensor],
) -> dict[str, float]:
    """Errors of the reference in a dtype, by the names of the results."""
    factor = 1.0
    if dtype == torch.float64:
        # There is no wider truth to measure float64 against. Errors are proportional to the dtype's epsilon: take
        # those of float32, times sqrt(2), for a vector has half the lanes and so every lane a sum of twice the
        # length, and half as much again, for the truth has errors of its own.
        ratio = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        dtype, factor = torch.float32, 1.5 * 2**0.5 * ratio
        inputs = [None if t is None else t.float() for t in inputs]
        truth = run(torch.float64, inputs, backend="reference")
    reference = run(dtype, inputs, backend="reference")
    return {name: factor * error(reference[name], truth[name]) for name in truth}


def strided(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory layout."""
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    if layout == "batch_last":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    assert layout in ("contiguous", "channels_last")
    return tensor.contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
