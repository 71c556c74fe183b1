"""The rule of correctness, in one place: error against float64 at most twice the reference's plus one ulp."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FUSED = ("native",)


def errors(got: Tensor, truth: Tensor) -> float:
    """The largest absolute error, in float64; 0 for empty tensors."""
    assert got.shape == truth.shape, (got.shape, truth.shape)
    return (got.double() - truth).abs().max().item() if got.numel() else 0.0


def assert_within_rule(name: str, got: Tensor, reference: Tensor, truth: Tensor) -> None:
    assert truth.isfinite().all(), f"{name}: the truth itself is not finite"
    assert got.isfinite().all(), f"{name}: not finite"
    scale = truth.abs().max().item() if truth.numel() else 0.0
    allowed = 2 * errors(reference, truth) + torch.finfo(got.dtype).eps * scale
    assert errors(got, truth) <= allowed, (
        f"{name}: error {errors(got, truth):.3e}, allowed {allowed:.3e} at scale {scale:.3e}"
    )


def evaluate(
    call: Callable[..., Tensor], inputs: Sequence[Tensor | None], cotangent: Tensor
) -> list[Tensor | None]:
    """The result and the gradient of every input, under one cotangent."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    result = call(*leaves)
    there = [t for t in leaves if t is not None]
    gradients = iter(torch.autograd.grad(result, there, cotangent.to(result.dtype)))
    return [result.detach(), *(None if t is None else next(gradients) for t in leaves)]


def assert_parity(
    operator: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    arguments: dict[str, Any],
    outputs: tuple[int, ...],
    backend: str,
    seed: int = 0,
) -> None:
    """Result and gradients of a backend against the float64 truth, by the rule."""

    def run(dtype: torch.dtype | None, chosen: str, **extra: Any) -> list[Tensor | None]:
        torch.manual_seed(seed)  # the same dropout seed for all three
        # Strides are part of the case: `to` keeps them, and a cast is exact towards float64.
        cast = [t if t is None or dtype is None else t.to(dtype) for t in inputs]
        call = lambda *tensors: operator(*tensors, backend=chosen, **arguments, **extra)  # noqa: E731
        return evaluate(call, cast, cotangent)

    generator = torch.Generator().manual_seed(seed)
    dtype = next(t.dtype for t in inputs if t is not None)
    # Rounded to the dtype first, so that all three see the same numbers.
    cotangent = torch.randn(outputs, generator=generator, dtype=torch.float64).to(dtype).double()
    truth = run(torch.float64, "reference")
    reference = run(None, "reference")
    variants: list[dict[str, Any]] = [{}]
    if operator.__name__.endswith("fbp"):
        variants = [{"keep_projections": True}, {"keep_projections": False}]
    for variant in variants:
        for i, (got, ref, true) in enumerate(
            zip(run(None, backend, **variant), reference, truth, strict=True)
        ):
            if true is not None:
                name = (
                    f"{operator.__name__} {variant} {'result' if i == 0 else f'gradient {i - 1}'}"
                )
                assert_within_rule(name, got, ref, true)


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
    assert layout == "contiguous"
    return tensor
