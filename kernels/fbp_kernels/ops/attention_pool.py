"""Self-attention over frames, pooled over the whole clip and over each trunk of it."""

from typing import Any

from torch import Tensor

from .. import backends, native, reference, triton
from . import _check, _operator


def attention_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    scale: float | Tensor,
    *,
    trunks: int = 1,
    lengths: Tensor | None = None,
    backend: str | None = None,
    keep_hidden: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighs the frames by softmax(scale * tanh(x weight + bias) query) and sums them up.

    The attention of Zhou, Du et al. 2021 (https://arxiv.org/abs/2111.08910). Trunk h of a row of n frames has the
    frames floor(h n / H) to floor((h + 1) n / H), so the trunks share the frames out and their sums add up to
    the sum over the clip.

    Args:
        x: (B, T, C), float32, float64, bfloat16 or float16, as all tensors here; any strides.
        weight: (C, A).
        bias: (A,).
        query: (A,).
        scale: factor of the scores (lambda), a number or a scalar tensor of any floating dtype.
        trunks: H.
        lengths: int64 or int32 (B,), n of each row, whatever the frames after hold; None means T.
        backend: as in `fbp`.
        keep_hidden: keep tanh(x weight + bias) (B, T, A) for the backward (True), compute it again there (False), or
            None for the default, which keeps it up to 64 MiB. The reference leaves this to PyTorch.

    Returns:
        The sum over the clip (B, C), the sums over the trunks (B, H, C) and the weights (B, T), which are 0 from
        frame n on and everywhere in a row without frames. All three can be differentiated.

    Raises:
        TypeError: dtypes that are not supported or differ; a scale that does not float; lengths that are no integers.
        ValueError: shapes, devices, trunks, lengths or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    # A number travels as one: a tensor made of it would be a launch of its own.
    tensor, number = (scale, 1.0) if isinstance(scale, Tensor) else (None, float(scale))
    tensors = (x, weight, bias, query, tensor, _check.as_int64(lengths))
    pooled, trunk_pooled, weights, *_ = _call(tensors, (trunks, number), backend, keep_hidden)
    return pooled, trunk_pooled, weights


def _check_all(tensors: tuple[Any, ...], attributes: tuple[Any, ...]) -> None:
    x, weight, bias, query, scale, lengths = tensors
    narrowed = {"x": x, "weight": weight, "bias": bias, "query": query}
    _check.tensors("attention_pool", **narrowed)
    _check.shapes("attention_pool", narrowed, ("BTC", "CA", "A", "A"))
    if scale is not None:
        _check.tensors("attention_pool", scale=scale)
        _check.shapes("attention_pool", {"scale": scale}, ("",))
        _check.devices("attention_pool", x=x, scale=scale)
    _check.lengths("attention_pool", lengths, x, x.shape[1])
    trunks, _ = attributes
    if trunks < 1:
        raise ValueError(f"attention_pool: trunks is {trunks}, expected at least 1")


def _reference(*, scale: Tensor | None, factor: float, **others: Any) -> Any:
    return reference.attention_pool(scale=factor if scale is None else scale, **others)


def _fake(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    trunks, _, _ = arguments[-3:]
    B, T, C = x.shape
    hidden = x.new_empty(B, T, weight.shape[1])
    return x.new_empty(B, C), x.new_empty(B, trunks, C), x.new_empty(B, T), hidden


_call = _operator.Operator(
    "attention_pool",
    inputs=("Tensor x", "Tensor weight", "Tensor bias", "Tensor query", "Tensor? scale"),
    extras=("Tensor? lengths",),
    attributes=("SymInt trunks", "float factor"),
    check=_check_all,
    narrowed=4,  # not the scale
    fake=_fake,
    reference=_reference,
    rows=(0, 5),
    results=3,
    reused=(2,),  # the weights
    kept=1,  # the hidden layer
    kept_size=lambda x, weight, *_: x.shape[0] * x.shape[1] * weight.shape[1],
    work=lambda x, weight, *_: x.numel() * weight.shape[1],
).register(
    native=backends.Kernel(
        native.raw("attention_pool_forward"), native.raw("attention_pool_backward")
    ),
    triton=backends.Kernel(*triton.late("attention_pool")),
)
