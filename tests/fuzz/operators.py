"""One case of each raw operator: its forward, and a backward with what the forward gave."""

from collections.abc import Callable
from typing import Any

import torch
from draws import BATCH, FACTOR, OUTPUTS, TRUNKS, WIDTH, Call, Draw, needs
from torch import Tensor

# Runs a call and gives its results, None where the call was wrong and, as it should, refused.
Run = Callable[[Call], Any]


def fbp(draw: Draw, run: Run) -> None:
    B, C, D = draw.size(BATCH, 64), draw.size(WIDTH, 96), draw.size(WIDTH, 96)
    K = draw.size(FACTOR)
    N = draw.size(OUTPUTS, 64) * K
    inputs = [draw.tensor(B, C), draw.tensor(B, D), draw.tensor(C, N), draw.tensor(D, N)]
    inputs += [draw.maybe(N), draw.maybe(N)]
    seed, dropout = draw.seed_and_dropout()
    attributes = [K, draw.rng.random() < 0.5, dropout]
    _pool(draw, run, "fbp", inputs, [seed], attributes, (B, N // K), [(1, B, N)], {})


def trunk_fbp(draw: Draw, run: Run) -> None:
    B, H = draw.size(BATCH, 64), draw.size(TRUNKS)
    C, D, K = draw.size(WIDTH, 64), draw.size(WIDTH, 64), draw.size(FACTOR)
    N = draw.size(OUTPUTS, 48) * K
    inputs = [draw.tensor(B, H, C), draw.tensor(B, H, D)]
    inputs += [draw.tensor(H, C, N), draw.tensor(H, D, N), draw.maybe(H, N), draw.maybe(H, N)]
    seed, dropout = draw.seed_and_dropout()
    extras = [draw.lengths(B, H), seed]
    checked = {6: f"lengths:{H}"}
    _pool(draw, run, "trunk_fbp", inputs, extras, [K, dropout], (B, N // K), [(H, B, N)], checked)


def am_fbp(draw: Draw, run: Run) -> None:
    B, H = draw.size(BATCH, 64), draw.size(TRUNKS)
    C, D, K = draw.size(WIDTH, 64), draw.size(WIDTH, 64), draw.size(FACTOR)
    E, F, L = draw.size(WIDTH, 64), draw.size(WIDTH, 64), draw.size(FACTOR)
    N, M = draw.size(OUTPUTS, 48) * K, draw.size(OUTPUTS, 48) * L
    inputs = [draw.tensor(B, C), draw.tensor(B, D), draw.tensor(B, H, E), draw.tensor(B, H, F)]
    inputs += [draw.tensor(C, N), draw.tensor(D, N), draw.tensor(H, E, M), draw.tensor(H, F, M)]
    seed, dropout = draw.seed_and_dropout()
    extras = [draw.lengths(B, H), seed]
    attributes = [K, L, draw.rng.random() < 0.5, dropout]
    kept, checked = [(1, B, N), (H, B, M)], {8: f"lengths:{H}", 11: "factor"}
    _pool(draw, run, "am_fbp", inputs, extras, attributes, (B, N // K + M // L), kept, checked)


def _pool(
    draw: Draw,
    run: Run,
    name: str,
    inputs: list[Any],
    extras: list[Any],
    attributes: list[Any],
    result: tuple[int, int],
    kept_shapes: list[tuple[int, int, int]],
    checked: dict[int, str],
) -> None:
    """Forward and backward of a bilinear pooling, kept or recomputed."""
    tensors = len(inputs) + len(extras)
    checked = checked | dict.fromkeys(range(len(inputs)), "tensor")
    checked |= {tensors: "factor", tensors + len(attributes) - 1: "probability"}
    keep = draw.rng.random() < 0.5
    forward = Call(f"{name}_forward", [*inputs, *extras, *attributes, keep])
    if draw.wrong and draw.rng.random() < 0.5:
        run(draw.spoil(forward, checked))
        return
    _, *kept = run(forward)
    if keep and draw.rng.random() < 0.3:  # in memory of other strides
        kept = [draw.tensor(*shape) for shape in kept_shapes for _ in range(2)]
    dz = draw.tensor(*result)
    arguments = [dz, *inputs, *extras, *kept, *attributes, needs(draw, inputs)]
    backward = Call(f"{name}_backward", arguments)
    if draw.wrong:
        shifted = {i + 1 + (len(kept) if i >= tensors else 0): kind for i, kind in checked.items()}
        run(draw.spoil(backward, shifted | {0: "tensor"}))
        return
    run(backward)


def _map(draw: Draw) -> tuple[int, ...]:
    """The shape (N, C, *) of a feature map."""
    others = draw.rng.choice([(0,), (1,), (2, 9), (5, 3), (7, 4, 2), (33,), (16, 17)])
    if draw.large:
        others = (40, 50)
    return (draw.rng.choice((0, 1, 2, 3)), draw.rng.choice((1, 2, 5, 8, 17, 40)), *others)


def _in_a_layout(draw: Draw, x: Tensor) -> Tensor:
    """As the public operators pass maps on: contiguous or channels last, else of any strides."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    how = draw.rng.choice(("contiguous", "channels_last", "any"))
    if how == "contiguous":
        return x.contiguous()
    if how == "channels_last" and x.dim() in formats:
        return x.contiguous(memory_format=formats[x.dim()])
    return x


def lrn(draw: Draw, run: Run) -> None:
    shape = _map(draw)
    x, dy = (_in_a_layout(draw, draw.tensor(*shape)) for _ in range(2))
    size = draw.rng.choice((1, 2, 3, 5, 8, 9, 100))
    attributes = [size, draw.rng.choice((1e-4, 0.5)), draw.rng.choice((0.75, 0.5, 1.3)), 1.0]
    attributes.append(draw.rng.random() < 0.5)
    forward, backward = (
        Call("lrn_forward", [x, *attributes]),
        Call("lrn_backward", [dy, x, *attributes]),
    )
    if draw.wrong:
        run(draw.spoil(backward, {0: "tensor", 2: "factor"}))
        return
    run(forward)
    run(backward)


def batch_norm(draw: Draw, run: Run) -> None:
    shape = _map(draw)
    wide = torch.float64 if draw.dtype == torch.float64 else torch.float32
    x, dy = (_in_a_layout(draw, draw.tensor(*shape)) for _ in range(2))
    weight, bias = (draw.tensor(shape[1], dtype=wide) for _ in range(2))
    lengths = draw.lengths(shape[0], shape[-1])
    attributes = [draw.rng.choice((1e-5, 0.1)), draw.rng.random() < 0.5]
    checked = {1: "tensor", 2: "tensor", 3: f"lengths:{shape[-1]}"}
    forward = Call("batch_norm_forward", [x, weight, bias, lengths, *attributes])
    if draw.wrong and draw.rng.random() < 0.5:
        run(draw.spoil(forward, checked))
        return
    _, mean, variance = run(forward)
    arguments = [dy, x, weight, bias, lengths, mean, variance, *attributes]
    backward = Call("batch_norm_backward", [*arguments, needs(draw, [x, weight, bias])])
    if draw.wrong:
        shifted = {i + 1: kind for i, kind in checked.items()}
        run(draw.spoil(backward, shifted | dict.fromkeys((0, 5, 6), "tensor")))
        return
    run(backward)


def attention_pool(draw: Draw, run: Run) -> None:
    B, T = draw.size(BATCH, 16), draw.size((0, 1, 1, 2, 5, 12, 37), 120)
    C, A = draw.size(WIDTH, 64), draw.size(OUTPUTS, 32)
    H = draw.rng.choice((1, 2, 3, 5))
    inputs = [draw.tensor(B, T, C), draw.tensor(C, A), draw.tensor(A), draw.tensor(A)]
    scale = draw.rng.choice((None, torch.tensor(1.5, dtype=draw.dtype)))
    lengths = draw.lengths(B, T)
    attributes = [H, draw.rng.choice((1.0, 0.3))]
    checked = dict.fromkeys(range(1, 4), "tensor") | {5: f"lengths:{T}", 6: "factor"}
    keep = draw.rng.random() < 0.5
    forward = Call("attention_pool_forward", [*inputs, scale, lengths, *attributes, keep])
    if draw.wrong and draw.rng.random() < 0.5:
        run(draw.spoil(forward, checked))
        return
    _, _, weights, hidden = run(forward)
    if keep and draw.rng.random() < 0.3:  # in memory of other strides
        hidden = draw.tensor(B, T, A)
    shapes = ((B, C), (B, H, C), (B, T))
    gradients = [draw.maybe(*shape) for shape in shapes]
    arguments = [*gradients, *inputs, scale, lengths, weights, hidden, *attributes]
    due = needs(draw, [*inputs, scale])
    backward = Call("attention_pool_backward", [*arguments, due])
    if draw.wrong:
        shifted = {i + 3: kind for i, kind in checked.items()}
        run(draw.spoil(backward, shifted | dict.fromkeys((0, 1, 2, 9, 10), "tensor")))
        return
    run(backward)


def power_normalize(draw: Draw, run: Run) -> None:
    shape = (*draw.rng.choice(((), (0,), (1,), (5,), (3, 4), (33,))), draw.size(WIDTH, 5000))
    z, dy, eps = draw.tensor(*shape), draw.tensor(*shape), draw.rng.choice((1e-12, 0.02))
    if draw.wrong:
        run(draw.spoil(Call("power_normalize_backward", [dy, z, eps]), {0: "tensor"}))
        return
    run(Call("power_normalize_forward", [z, eps]))
    run(Call("power_normalize_backward", [dy, z, eps]))


def dropout(draw: Draw, run: Run) -> None:
    shape = _map(draw)
    x, dy = draw.tensor(*shape), draw.tensor(*shape)
    generator = torch.Generator().manual_seed(draw.rng.getrandbits(40))
    torch.randint(9, (draw.rng.choice((1, 2, 623, 624, 1000)),), generator=generator)
    state = generator.get_state().view(torch.int64)
    p = draw.rng.choice((0.0, 0.1, 0.5, 1.0))
    forward = Call("dropout_forward", [x, state, p])
    backward = Call("dropout_backward", [dy, x, state, p])
    if draw.wrong:
        run(draw.spoil(backward, {0: "tensor", 2: "tensor", 3: "probability"}))
        return
    run(forward)
    run(backward)


def conv2d(draw: Draw, run: Run) -> None:
    stride, padding, kernel = (
        [draw.rng.choice(sizes) for _ in range(2)]
        for sizes in ((1, 1, 2, 3), (0, 1, 2), (1, 2, 3, 5))
    )
    size = [draw.rng.choice((k, k, k + 1, k + 9)) for k in kernel]
    channels, outputs = draw.rng.choice((1, 2, 3, 15, 16, 17, 48, 64)), draw.size(OUTPUTS, 300)
    images = draw.rng.choice((0, 1, 2, 5))
    out = [
        (s + 2 * p - k) // t + 1 for s, p, k, t in zip(size, padding, kernel, stride, strict=True)
    ]
    x = _in_a_layout(draw, draw.tensor(images, channels, *size))
    dy = _in_a_layout(draw, draw.tensor(images, outputs, *out))
    weight = _in_a_layout(draw, draw.tensor(outputs, channels, *kernel))
    call = Call("conv2d_weight_gradient", [dy, x, weight, *stride, *padding])
    # Of the others, another size may give as many positions.
    run(draw.spoil(call, {0: "tensor"}) if draw.wrong else call)


OPERATORS: dict[str, Callable[[Draw, Run], None]] = {
    "fbp": fbp,
    "trunk_fbp": trunk_fbp,
    "am_fbp": am_fbp,
    "lrn": lrn,
    "batch_norm": batch_norm,
    "attention_pool": attention_pool,
    "power_normalize": power_normalize,
    "dropout": dropout,
    "conv2d_weight_gradient": conv2d,
}
