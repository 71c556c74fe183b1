"""What runs here, and whether it keeps the rule of `fbp_kernels.correct` over several draws of its inputs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import backends, correct

Inputs = Sequence[Tensor | None]


def fused(operator: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """The backends that run an operator on the CPU with kernels of their own; Triton's in its interpreter."""

    def runs(backend: str) -> bool:
        try:
            backends.resolve(operator, backend, "cpu", dtype)
        except RuntimeError:
            return False
        return True

    return [b for b in backends.BACKENDS if b != "reference" and runs(b)]


def pairs(
    operators: Iterable[str] = tuple(fk.ops.__all__),
    dtype: torch.dtype = torch.float32,
    *others: str,
) -> list[tuple[str, str]]:
    """Every operator with every fused backend that runs it on the CPU, and with the others named."""
    return [(o, b) for o in operators for b in (*fused(o, dtype), *others)]


def error(got: Tensor, truth: Tensor) -> float:
    """The largest absolute error, in float64; 0 for empty tensors."""
    assert got.shape == truth.shape, (got.shape, truth.shape)
    assert got.isfinite().all()
    return correct.error(got, truth)


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
        self.scale = max(self.scale, correct.scale(truth))
        self.dtype = got.dtype

    def assert_within_rule(self, name: str) -> None:
        allowed = correct.allowed(self.reference, self.scale, correct.unit(self.dtype))
        assert self.ours <= allowed, (
            f"{name}: error {self.ours:.3e}, allowed {allowed:.3e} at scale {self.scale:.3e}"
        )


def evaluate(
    call: Callable[..., Any], inputs: Inputs, seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The results by name, and the gradients of every input under cotangents that the seed gives.

    Cotangents are rounded to `dtype`, so that results of any dtype see the same numbers.
    """
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    results = call(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    there = {f"gradient {i}": t for i, t in enumerate(leaves) if t is not None}
    differentiable = [t for t in results if t.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    cotangents = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype).to(t.dtype)
        for t in differentiable
    ]
    gradients = torch.autograd.grad(differentiable, list(there.values()), cotangents)
    named = {f"result {i}": t.detach() for i, t in enumerate(results)}
    return named | dict(zip(there, gradients, strict=True))


def kept_by(operator: Callable[..., Any]) -> str:
    """The argument that says what an operator keeps for its backward, empty where it has none."""
    name = operator.__name__
    if name.startswith("attention_pool"):
        return "keep_hidden"
    return "keep_projections" if name.endswith("fbp") else ""


def assert_parity(
    operator: Callable[..., Any],
    draw: Callable[[int], Inputs],
    arguments: dict[str, Any],
    backend: str,
    draws: int = 1,
) -> None:
    """Result and gradients of a backend against the float64 truth, by the rule.

    Args:
        operator: called with the inputs, the arguments and a backend; all results that have a gradient are
            differentiated together.
        draw: inputs by seed.
        arguments: everything that is not differentiated.
        backend: the one under test.
        draws: how many draws the largest errors are taken over. The error of one small result is the luck of
            a rounding or two; the rule compares what the errors amount to.
    """
    name = kept_by(operator)
    variants: list[dict[str, Any]] = [{name: k} for k in (True, False)] if name else [{}]
    found: dict[str, Errors] = {}
    for seed in range(draws):
        inputs = draw(seed)
        dtype = next(t.dtype for t in inputs if t is not None)

        def run(wide: torch.dtype, inputs: Inputs = inputs, **options: Any) -> dict[str, Tensor]:
            # `to` keeps strides, which are part of the case, and is exact towards float64.
            cast = [None if t is None else t.to(wide) for t in inputs]
            torch.default_generator.manual_seed(seed)  # noqa: B023 (the same dropout mask for all)
            call = lambda *t: operator(*t, **arguments, **options)  # noqa: E731
            return evaluate(call, cast, seed, dtype)  # noqa: B023

        truth = run(torch.float64, backend="reference")
        reference = reference_errors(run, dtype, inputs, truth)
        # The interpreter is slow: it takes the variants in turn.
        for variant in variants if backend == "native" else [variants[seed % len(variants)]]:
            got = run(dtype, backend=backend, **variant)
            assert got.keys() == truth.keys()
            for name in got:
                found.setdefault(name, Errors()).add(got[name], truth[name], reference[name])
    for name, errors in found.items():
        errors.assert_within_rule(f"{operator.__name__} {name}")


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
