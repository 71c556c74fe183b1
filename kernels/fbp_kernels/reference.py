"""The definition of correct: every operator in plain PyTorch, differentiated by PyTorch itself.

Truth is these functions in float64. They are written to be read, not to be fast; shapes are in the
comments, with B batch, C audio width, D video width, O outputs, K factors, N = O * K, H trunks, T frames.

Formulas: factorized bilinear pooling after Yu et al. 2017 (https://arxiv.org/abs/1708.01471); adaptive and
multi-level pooling and the attention after Zhou, Du et al. 2021 (https://arxiv.org/abs/2111.08910).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import generator

# Dropout streams: the two halves of am_fbp draw different masks from one seed.
GLOBAL_STREAM, TRUNK_STREAM = 0, 1


def fbp(
    a: Tensor,
    v: Tensor,
    p: Tensor,
    q: Tensor,
    factor: int,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    adaptive: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Global factorized bilinear pooling, see `fbp_kernels.fbp`; `seed` None means no dropout."""
    if adaptive:
        mu, eta = adaptive_scales(a, v)
        a, v = mu * a, eta * v
    u, w = a @ p, v @ q  # (B, N)
    product = _biased(u, p_bias) * _biased(w, q_bias)
    if seed is not None:
        mask = dropout_mask(seed, a.shape[0], 1, p.shape[1], dropout, GLOBAL_STREAM)
        product = product * mask.squeeze(1).to(product.dtype)
    return product.unflatten(1, (-1, factor)).sum(2)  # (B, O, K) -> (B, O)


def trunk_fbp(
    a: Tensor,
    v: Tensor,
    p: Tensor,
    q: Tensor,
    factor: int,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Per-trunk factorized bilinear pooling, see `fbp_kernels.trunk_fbp`."""
    B, H, _ = a.shape
    if lengths is not None:
        alive = torch.arange(H, device=a.device) < lengths[:, None]  # (B, H)
        # What stands in dead trunks must not count, not even NaN: zero the inputs, then the products.
        a, v = (x.masked_fill(~alive[..., None], 0.0) for x in (a, v))
    u = torch.einsum("bhc,hcn->bhn", a, p)
    w = torch.einsum("bhd,hdn->bhn", v, q)
    product = _biased(u, p_bias) * _biased(w, q_bias)  # (B, H, N)
    if lengths is not None:
        product = product.masked_fill(~alive[..., None], 0.0)
    if seed is not None:
        product = product * dropout_mask(seed, B, H, p.shape[2], dropout, TRUNK_STREAM).to(
            product.dtype
        )
    return product.unflatten(2, (-1, factor)).sum((1, 3))  # (B, H, O, K) -> (B, O)


def am_fbp(
    a: Tensor,
    v: Tensor,
    a_trunks: Tensor,
    v_trunks: Tensor,
    p: Tensor,
    q: Tensor,
    p_trunks: Tensor,
    q_trunks: Tensor,
    factor: int,
    trunk_factor: int,
    *,
    adaptive: bool = True,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Adaptive, multi-level factorized bilinear pooling, see `fbp_kernels.am_fbp`."""
    pooled = fbp(a, v, p, q, factor, adaptive=adaptive, dropout=dropout, seed=seed)
    trunk_pooled = trunk_fbp(
        a_trunks,
        v_trunks,
        p_trunks,
        q_trunks,
        trunk_factor,
        lengths=lengths,
        dropout=dropout,
        seed=seed,
    )
    return torch.cat([pooled, trunk_pooled], dim=1)


def attention_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    scale: float | Tensor,
    *,
    trunks: int = 1,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over frames with global and per-trunk sums, see `fbp_kernels.attention_pool`."""
    B, T, _ = x.shape
    n = x.new_full((B,), T, dtype=torch.int64) if lengths is None else lengths
    n = n[:, None]  # (B, 1)
    frame = torch.arange(T, device=x.device)
    alive = frame < n  # (B, T)
    x = x.masked_fill(~alive[..., None], 0.0)  # so that NaN in the padding stays there
    score = scale * (torch.tanh(x @ weight + bias) @ query)  # (B, T)
    # The lowest finite number, not -inf: a row without frames must give 0 and not NaN.
    weights = score.masked_fill(~alive, torch.finfo(score.dtype).min).softmax(1) * alive
    # t >= floor(h n / H) exactly when h < (t + 1) H / n, so this is the trunk that frame t falls in.
    trunk = ((frame + 1) * trunks - 1) // n.clamp(min=1)  # (B, T)
    member = trunk[:, None, :] == torch.arange(trunks, device=x.device)[:, None]  # (B, H, T)
    trunk_pooled = (weights[:, None, :] * member) @ x  # (B, H, C)
    return trunk_pooled.sum(1), trunk_pooled, weights


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    lengths: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation over what counts of each row, see `fbp_kernels.batch_norm`."""
    # As in local_response_norm: computed in float32, rounded once.
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    N, T = x.shape[0], x.shape[-1]
    others = [1] * (x.dim() - 3)
    n = torch.full((N,), T, device=x.device) if lengths is None else lengths
    alive = (torch.arange(T, device=x.device) < n[:, None]).view(N, 1, *others, T)
    count = (n.sum() * math.prod(x.shape[2:-1])).clamp(min=1)
    dims = [0, *range(2, x.dim())]
    mean = wide.where(alive, 0.0).sum(dims, keepdim=True) / count  # (1, C, 1, ...)
    centred = (wide - mean).where(alive, 0.0)
    var = centred.square().sum(dims, keepdim=True) / count
    scale, shift = (p.view(-1, *others, 1) for p in (weight, bias))
    y = centred * (scale * torch.rsqrt(var + eps)) + shift
    y = (F.relu(y) if relu else y).where(alive, 0.0)
    return y.to(x.dtype), mean.detach().flatten(), var.detach().flatten()


def local_response_norm(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    relu: bool = False,
) -> Tensor:
    """Normalisation over neighbouring channels, see `fbp_kernels.local_response_norm`."""
    # PyTorch's pooling lacks half precision on the CPU: compute in float32, round once.
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if x.dim() > 4:
        wide = wide.contiguous()  # PyTorch's own views dimensions as one that need not lie together
    y = F.local_response_norm(F.relu(wide) if relu else wide, size, alpha, beta, k)
    return y.to(x.dtype)


def power_normalize(z: Tensor, eps: float = 1e-12) -> Tensor:
    """Signed square root and L2 normalisation of rows, see `fbp_kernels.power_normalize`."""
    zero = z == 0
    # The root's slope is infinite at 0: zeros bypass it in the forward and so in the backward too.
    root = torch.sqrt(torch.where(zero, 1.0, z.abs()))
    return F.normalize(torch.where(zero, 0.0, z.sign() * root), dim=-1, eps=eps)


def dropout(x: Tensor, state: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Dropout with the mask of a generator's state, see `fbp_kernels.dropout`; and the state after it."""
    numbers, after = generator.uniform_like(x, state)
    mask = (numbers < 1.0 - p).to(x.dtype)  # 0 or 1
    return x * (mask / (1.0 - p) if p < 1 else mask), after


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Convolution, see `fbp_kernels.conv2d`."""
    return F.conv2d(x, weight, bias, stride, padding)


def adaptive_scales(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """mu = |a| / (|a| + |v|) and eta = |v| / (|a| + |v|), L2 norms of rows; 0.5 each where both are 0.

    Args:
        a: (B, C).
        v: (B, D).

    Returns:
        mu and eta, both (B, 1), with a gradient of 0 through a norm that is 0.
    """
    a_norm, v_norm = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, v))
    total = a_norm + v_norm
    silent = total == 0
    total = torch.where(silent, 1.0, total)
    return tuple(torch.where(silent, 0.5, norm / total) for norm in (a_norm, v_norm))  # type: ignore[return-value]


def dropout_mask(
    seed: Tensor, rows: int, trunks: int, columns: int, dropout: float, stream: int
) -> Tensor:
    """What multiplies the product before the sum over K: 0 where dropped, else 1 / (1 - dropout).

    Counter-based, so that forward and backward agree without a stored mask: Philox 4x32-10 (Salmon et
    al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as its key and the counter
    (column, trunk, row // 4, stream); row % 4 picks the output word. An element is kept where its word
    is at least dropout * 2^32.

    Args:
        seed: int64 scalar.
        rows: B.
        trunks: H.
        columns: N = O * K.
        dropout: probability of 0, in [0, 1].
        stream: which of several masks of one seed.

    Returns:
        float32 (B, H, N).
    """
    shape = ((rows + 3) // 4, trunks, columns)
    quad, trunk, column = (torch.arange(size, device=seed.device) for size in shape)
    words = (column, trunk[:, None], quad[:, None, None], torch.full_like(seed, stream))
    counter = [word.expand(shape) for word in words]
    bits = torch.stack(_philox(counter, (seed & _LOW, seed >> 32 & _LOW)), 1)  # (B/4, 4, H, N)
    keep = bits.flatten(0, 1)[:rows] >= int(dropout * 2**32)
    return keep * (1.0 / (1.0 - dropout) if dropout < 1 else 0.0)


_LOW = 0xFFFFFFFF


def _philox(counter: list[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Ten rounds on four words; 32-bit words live in int64, which wide products must not overflow."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _wide_product(c0, 0xD2511F53)
        high1, low1 = _wide_product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def _wide_product(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 by 32 bit product, by halves of the constant."""
    low = x * (constant & 0xFFFF)
    middle = x * (constant >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def _biased(projection: Tensor, bias: Tensor | None) -> Tensor:
    return projection if bias is None else projection + bias
