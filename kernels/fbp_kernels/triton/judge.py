"""Whether a configuration computes what it should: the judge of every search for configurations.

Samples are calls of the public operators, with gradients, at a representative shape of each class of size. Truth is
the reference in float64, the rule that of `fbp_kernels.correct`; and whoever runs twice gives the same bits twice, for
a race shows in nothing else. The table's own entry is judged like any other: it may be what is wrong.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import correct
from . import attention_pool, bilinear, local_response_norm, power_normalize, tuning
from .tuning import Config, Key

_FEW = 16  # elements: the error of so few is the luck of a rounding or two, so that several draws are taken together
_DRAWS = 8

Choose = Callable[[Key, str], Config]
"""The configuration of a kernel that is not on trial, by its key and the architecture."""


@dataclass(frozen=True)
class Sample:
    """A call that launches kernels, and what it has to compute.

    Attributes:
        ours: called with the seed of a draw; all that the kernels compute.
        reference: called with that seed and a dtype; the same in plain PyTorch.
        dtype: of the inputs.
    """

    ours: Callable[[int], Sequence[Tensor]]
    reference: Callable[[int, torch.dtype], Sequence[Tensor]]
    dtype: torch.dtype


def samples(module: str, size: str, dtype: torch.dtype, device: torch.device | str) -> list[Sample]:
    """The calls that reach all keys of a module at a class of size.

    Raises:
        LookupError: there are none for the module, so that nothing of it could be judged.
    """
    if module not in _SAMPLES:
        raise LookupError(f"no samples of {module} to judge by, there are: {', '.join(_SAMPLES)}")
    return list(_SAMPLES[module](size, dtype, device))


class Judge:
    """Judges configurations by one sample.

    Args:
        sample: the call.
        choose: the configuration of kernels that are not on trial.
    """

    def __init__(self, sample: Sample, choose: Choose = tuning.lookup) -> None:
        self._sample, self._choose = sample, choose
        self._truths = [self._truth(0)]
        if any(truth.numel() <= _FEW for truth, _ in self._truths[0].values()):
            self._truths += [self._truth(seed, most=_FEW) for seed in range(1, _DRAWS)]

    def _truth(self, seed: int, most: float = math.inf) -> dict[int, tuple[Tensor, float]]:
        """Results in float64, and what an error of each may be; of those with more elements than `most` none."""
        truth = self._sample.reference(seed, torch.float64)
        plain = self._sample.reference(seed, self._sample.dtype)
        return {
            i: (t, correct.allowed(correct.error(p, t), correct.scale(t), correct.unit(p.dtype)))
            for i, (t, p) in enumerate(zip(truth, plain, strict=True))
            if t.numel() <= most
        }

    def reached(self) -> list[Key]:
        """The keys that the sample comes to, in order; up to the first that does not run."""
        reached: dict[Key, None] = {}

        def note(key: Key, architecture: str, call: tuning.Call) -> Any:
            reached[key] = None
            return call(self._choose(key, architecture))

        with tuning.choosing(note), _kept_failures([]):
            self._sample.ours(0)
        return list(reached)

    def run(
        self,
        key: Key,
        config: Config,
        seed: int = 0,
        before: Callable[[tuning.Call], None] | None = None,
    ) -> Sequence[Tensor]:
        """The sample's results with one kernel in a given configuration.

        Args:
            key: of the kernel.
            config: the configuration.
            seed: of the draw.
            before: called with what launches the kernel, before it is launched.
        """

        def choose(reached: Key, architecture: str, call: tuning.Call) -> Any:
            if reached != key:
                return call(self._choose(reached, architecture))
            if before:
                before(call)
            return call(config)

        with tuning.choosing(choose):
            return self._sample.ours(seed)

    def why_wrong(self, key: Key, config: Config) -> str:
        """Why a configuration of a kernel cannot be used, or "".

        Raises:
            torch.AcceleratorError: the device is gone for all that comes after.
        """
        most = [[0.0, 0.0] for _ in self._truths[0]]
        for seed, truth in enumerate(self._truths):
            failures: list[str] = []
            with _kept_failures(failures), correct.poisoned_memory():
                first, second = (self.run(key, config, seed) for _ in range(2))
            if failures:
                return f"does not run: {failures[0]}"
            for number, (got, again) in enumerate(zip(first, second, strict=True)):
                if not got.isfinite().all():
                    return f"result {number} is not finite everywhere"
                if not torch.equal(got, again):
                    return f"result {number} has other bits the second time"
            for number, (true, allowed) in truth.items():
                worst = most[number]
                error = correct.error(first[number], true)
                worst[:] = max(worst[0], error), max(worst[1], allowed)
        for number, (error, allowed) in enumerate(most):
            if not error <= allowed:
                return f"result {number} is off by {error:.3e}, allowed are {allowed:.3e}"
        return ""


@contextmanager
def _kept_failures(failures: list[str]) -> Iterator[None]:
    """What fails within ends the block and is added to a list; a lost device is no such failure."""
    try:
        yield
    except torch.AcceleratorError:
        raise
    except Exception as error:
        failures.append(tuning.reason(error))


def why_wrong(judges: Iterable[Judge], key: Key, config: Config) -> str:
    """Why one of several judges refuses a configuration, or ""."""
    return next((why for judge in judges if (why := judge.why_wrong(key, config))), "")


def verdicts(
    key: Key, configs: Sequence[Config], choose: Choose, device: torch.device
) -> list[str]:
    """Why each of some configurations cannot be used, or "", by all samples that come to the key.

    It may be asked for in the middle of somebody else's call. So it works in a thread of its own, where no gradient is
    taken, nothing is cast, and nobody else's launches go by what is on trial here.

    Args:
        key: of the kernel; products round to TF32 now as it says.
        configs: the configurations.
        choose: the configuration of kernels that are not on trial.
        device: where the samples run.

    Raises:
        LookupError: no sample comes to the key.
    """
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(_verdicts, key, configs, choose, device).result()


def _verdicts(
    key: Key, configs: Sequence[Config], choose: Choose, device: torch.device
) -> list[str]:
    module = tuning.module_of(key.kernel)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        judges = [
            judge
            for sample in samples(module, key.size, tuning.DTYPES[key.dtype], device)
            for judge in [Judge(sample, choose)]
            if key in judge.reached()
        ]
        if not judges:
            raise LookupError(f"no sample of {module} comes to {key}, so nothing can be judged")
        return [why_wrong(judges, key, config) for config in configs]


def of_operator(
    operator: Callable[..., Any],
    draw: Callable[[int], Sequence[Tensor | None]],
    arguments: dict[str, Any],
    differentiated: int | None = None,
    **ours: Any,
) -> Sample:
    """A public operator, forward and backward.

    Args:
        operator: the operator.
        draw: its differentiable inputs, by the seed.
        arguments: all others by name.
        differentiated: how many of its results, the first ones; default all.
        ours: arguments that the Triton backend alone is given.
    """
    dtype = next(t.dtype for t in draw(0) if t is not None)

    def evaluate(seed: int, wide: torch.dtype, **how: Any) -> list[Tensor]:
        given = [None if t is None else t.to(wide).requires_grad_() for t in draw(seed)]
        there = [t for t in given if t is not None]
        with _seeded(there[0].device, seed):  # one dropout mask for all
            found = operator(*given, **arguments, **how)
        results = list(found) if isinstance(found, tuple) else [found]
        used = results[:differentiated]
        draw_one = _drawer(there[0].device, dtype, seed + _DRAWS)
        cotangents = [draw_one(*t.shape).to(wide) for t in used]
        # In this thread, by whose word kernels are configured.
        with torch.autograd.set_multithreading_enabled(False):
            gradients = torch.autograd.grad(used, there, cotangents)
        return [t.detach() for t in (*results, *gradients)]

    return Sample(
        lambda seed: evaluate(seed, dtype, backend="triton", **ours),
        lambda seed, wide: evaluate(seed, wide, backend="reference"),
        dtype,
    )


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Within it, the generator of a device alone begins with a seed; whoever else draws from it goes on as before."""
    generator = (
        torch.cuda.default_generators[torch.cuda.current_device()]
        if device.type == "cuda"
        else torch.default_generator
    )
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _drawer(device: torch.device | str, dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, width: int = 1) -> Tensor:
        normal = torch.randn(shape, generator=generator, device=device)
        return normal.mul_(width**-0.5).to(dtype)

    return draw


def _bilinear(size: str, dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    from .. import ops

    B, C, D, O_G, K_G, H, O_M, K_M = bilinear.SAMPLES[size]
    keep = size != "large"

    def both(seed: int) -> Sequence[Tensor]:
        draw = _drawer(device, dtype, seed)
        N, M = O_G * K_G, O_M * K_M
        return (
            draw(B, C), draw(B, D), draw(B, H, C), draw(B, H, D),
            draw(C, N, width=C), draw(D, N, width=D), draw(H, C, M, width=C), draw(H, D, M, width=D),
        )  # fmt: skip

    def mfb(seed: int) -> Sequence[Tensor]:
        draw = _drawer(device, dtype, seed)
        N = O_G * 5
        return (
            draw(B, C), draw(B, D), draw(C, N, width=C), draw(D, N, width=D), draw(N), draw(N),
        )  # fmt: skip

    def biased(*tensors: Tensor, **how: Any) -> Tensor:
        a, v, p, q, p_bias, q_bias = tensors
        return ops.fbp(a, v, p, q, 5, p_bias=p_bias, q_bias=q_bias, **how)

    lengths = torch.full((B,), H, dtype=torch.int64, device=device)
    levels = {"factor": K_G, "trunk_factor": K_M, "lengths": lengths}
    dropout = {"dropout": 0.1, "training": True}
    yield of_operator(ops.am_fbp, both, levels, keep_projections=keep)
    yield of_operator(biased, mfb, dropout, keep_projections=not keep)


def _attention_pool(size: str, dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    from .. import ops

    B, T, C, A, H = attention_pool.SAMPLES[size]

    def four(seed: int) -> Sequence[Tensor]:
        draw = _drawer(device, dtype, seed)
        return draw(B, T, C), draw(C, A, width=C), draw(A), draw(A, width=A)

    def five(seed: int) -> Sequence[Tensor]:
        return *four(seed), torch.ones((), dtype=dtype, device=device)

    def of_number(*tensors: Tensor, **how: Any) -> Any:
        x, weight, bias, query = tensors
        return ops.attention_pool(x, weight, bias, query, 1.0, **how)

    lengths = torch.full((B,), T, dtype=torch.int64, device=device)
    yield of_operator(of_number, four, {"trunks": H}, 2, keep_hidden=True)
    every = {"trunks": H, "lengths": lengths}
    yield of_operator(ops.attention_pool, five, every, keep_hidden=False)


def _local_response_norm(
    size: str, dtype: torch.dtype, device: torch.device | str
) -> Iterator[Sample]:
    from .. import ops

    def draw(layout: torch.memory_format, seed: int) -> Sequence[Tensor]:
        x = _drawer(device, dtype, seed)(*local_response_norm.SAMPLES[size])
        return (x.contiguous(memory_format=layout),)

    for layout in (torch.contiguous_format, torch.channels_last):
        yield of_operator(ops.local_response_norm, partial(draw, layout), {"relu": True})


def _power_normalize(size: str, dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    from .. import ops

    def draw(seed: int) -> Sequence[Tensor]:
        return (_drawer(device, dtype, seed)(*power_normalize.SAMPLES[size]),)

    yield of_operator(ops.power_normalize, draw, {})


_SAMPLES: dict[str, Callable[..., Iterable[Sample]]] = {
    bilinear.__name__: _bilinear,
    attention_pool.__name__: _attention_pool,
    local_response_norm.__name__: _local_response_norm,
    power_normalize.__name__: _power_normalize,
}
