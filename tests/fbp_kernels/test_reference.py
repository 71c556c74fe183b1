"""The definition of correct, against the formulas written out element by element."""

import itertools
import math

import pytest
import torch

from fbp_kernels import reference

F64 = {"dtype": torch.float64}


def test_fbp_is_the_sum_of_bilinear_forms() -> None:
    # I_o = a^T (sum over k of p_ok q_ok^T) v, the slides' first form of it.
    B, C, D, O, K = 3, 4, 5, 2, 3
    a, v, p, q = (torch.randn(s, **F64) for s in [(B, C), (B, D), (C, O * K), (D, O * K)])
    z = reference.fbp(a, v, p, q, K)
    for b, o in itertools.product(range(B), range(O)):
        matrix = sum(torch.outer(p[:, o * K + k], q[:, o * K + k]) for k in range(K))
        torch.testing.assert_close(z[b, o], a[b] @ matrix @ v[b])


def test_biases_and_adaptive_scales_enter_where_they_should() -> None:
    B, C, D, O, K = 2, 3, 4, 2, 2
    a, v, p, q = (torch.randn(s, **F64) for s in [(B, C), (B, D), (C, O * K), (D, O * K)])
    pb, qb = torch.randn(O * K, **F64), torch.randn(O * K, **F64)
    z = reference.fbp(a, v, p, q, K, p_bias=pb, q_bias=qb, adaptive=True)
    for b in range(B):
        na, nv = math.sqrt((a[b] ** 2).sum()), math.sqrt((v[b] ** 2).sum())
        u = (na / (na + nv)) * a[b] @ p + pb
        w = (nv / (na + nv)) * v[b] @ q + qb
        torch.testing.assert_close(z[b], (u * w).view(O, K).sum(1))


def test_trunk_fbp_adds_up_the_living_trunks() -> None:
    B, H, C, D, O, K = 3, 4, 2, 3, 2, 2
    a, v = torch.randn(B, H, C, **F64), torch.randn(B, H, D, **F64)
    p, q = torch.randn(H, C, O * K, **F64), torch.randn(H, D, O * K, **F64)
    lengths = torch.tensor([0, 2, 4])
    z = reference.trunk_fbp(a, v, p, q, K, lengths=lengths)
    for b in range(B):
        expected = torch.zeros(O, **F64)
        for h in range(int(lengths[b])):
            expected += reference.fbp(a[b : b + 1, h], v[b : b + 1, h], p[h], q[h], K)[0]
        torch.testing.assert_close(z[b], expected)


def test_adaptive_scales_of_silent_modalities() -> None:
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    v = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    mu, eta = reference.adaptive_scales(a, v)
    assert mu.flatten().tolist() == [0.5, 1.0, 0.0]
    assert eta.flatten().tolist() == [0.5, 0.0, 1.0]
    for gradient in torch.autograd.grad((mu + 2 * eta).sum(), (a, v)):
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


@pytest.mark.parametrize("lengths", [None, [5, 0, 3, 1]])
@pytest.mark.parametrize("trunks", [1, 2, 3, 7])
def test_attention_pool_follows_the_slides(trunks: int, lengths: list[int] | None) -> None:
    B, T, C, A, scale = 4, 5, 3, 2, 1.7
    x = torch.randn(B, T, C, **F64)
    weight, bias, query = torch.randn(C, A, **F64), torch.randn(A, **F64), torch.randn(A, **F64)
    given = None if lengths is None else torch.tensor(lengths)
    pooled, trunk_pooled, weights = reference.attention_pool(
        x, weight, bias, query, scale, trunks=trunks, lengths=given
    )
    for b in range(B):
        n = T if lengths is None else lengths[b]
        gamma = [
            math.exp(scale * float(query @ torch.tanh(x[b, t] @ weight + bias))) for t in range(n)
        ]
        for t in range(T):
            assert float(weights[b, t]) == pytest.approx(gamma[t] / sum(gamma) if t < n else 0.0)
        for h in range(trunks):
            frames = range(h * n // trunks, (h + 1) * n // trunks)
            expected = sum((weights[b, t] * x[b, t] for t in frames), torch.zeros(C, **F64))
            torch.testing.assert_close(trunk_pooled[b, h], expected)
        torch.testing.assert_close(pooled[b], trunk_pooled[b].sum(0))


def test_attention_pool_gradients_ignore_padding_and_empty_rows() -> None:
    x = torch.randn(2, 4, 3, **F64)
    x[0, 2:] = float("nan")
    x[1] = float("inf")
    leaves = [
        t.requires_grad_()
        for t in (x, torch.randn(3, 2, **F64), torch.randn(2, **F64), torch.randn(2, **F64))
    ]
    results = reference.attention_pool(*leaves, 2.0, trunks=2, lengths=torch.tensor([2, 0]))
    gradients = torch.autograd.grad(sum(r.sum() for r in results), leaves)
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][0, 2:] == 0).all()
    assert (gradients[0][1] == 0).all()
    assert all((r[1] == 0).all() for r in results)


def test_attention_pool_gradcheck() -> None:
    inputs = [
        torch.randn(s, requires_grad=True, **F64) for s in [(3, 5, 2), (2, 4), (4,), (4,), ()]
    ]
    lengths = torch.tensor([5, 0, 3])
    assert torch.autograd.gradcheck(
        lambda *t: reference.attention_pool(*t, trunks=2, lengths=lengths), inputs
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("relu", [False, True])
def test_local_response_norm_by_the_formula(size: int, relu: bool) -> None:
    N, C, L, alpha, beta, k = 2, 6, 3, 0.3, 0.75, 1.5
    x = torch.randn(N, C, L, **F64)
    y = reference.local_response_norm(x, size, alpha, beta, k, relu=relu)
    r = x.clamp(min=0) if relu else x
    for n, c, i in itertools.product(range(N), range(C), range(L)):
        window = range(max(0, c - size // 2), min(C, c + (size - 1) // 2 + 1))
        mean = sum(float(r[n, j, i]) ** 2 for j in window) / size
        assert float(y[n, c, i]) == pytest.approx(float(r[n, c, i]) / (k + alpha * mean) ** beta)


def test_power_normalize_values_and_gradient_at_zero() -> None:
    z = torch.tensor([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True, **F64)
    y = reference.power_normalize(z)
    root = math.sqrt(4 + 9)
    assert y.tolist() == [pytest.approx([2 / root, -3 / root, 0.0]), [0.0, 0.0, 0.0]]
    (gradient,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0])).sum(), z)
    assert gradient.isfinite().all()
    assert float(gradient[0, 2]) == 0
    assert (gradient[1] == 0).all()
    away = torch.randn(3, 4, requires_grad=True, **F64)
    assert torch.autograd.gradcheck(reference.power_normalize, away)


# Known answers of Philox4x32-10 as the authors' Random123 library publishes them (kat_vectors).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    words = reference._philox(
        [torch.tensor(c) for c in counter], tuple(torch.tensor(k) for k in key)
    )
    assert tuple(int(w) for w in words) == expected


def test_dropout_mask_statistics() -> None:
    shape, rate = (40, 3, 1000), 0.3
    mask = reference.dropout_mask(torch.tensor(2**40 + 7), *shape, rate, 0)
    dropped = mask == 0
    count = dropped.numel()
    assert abs(dropped.double().mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / count)
    assert mask[~dropped].unique().tolist() == [pytest.approx(1 / 0.7)]
    for dim in range(3):  # neighbours along rows, trunks and columns are independent
        first, second = (
            dropped.narrow(dim, 0, shape[dim] - 1),
            dropped.narrow(dim, 1, shape[dim] - 1),
        )
        both = (first & second).double().mean()
        assert abs(both - rate**2) < 5 * math.sqrt(rate**2 / first.numel())
    other = reference.dropout_mask(torch.tensor(2**40 + 7), *shape, rate, 1)
    assert abs(((other == 0) & dropped).double().mean() - rate**2) < 5 * math.sqrt(rate**2 / count)


def test_dropout_mask_does_not_depend_on_the_batch_around_a_row() -> None:
    seed = torch.tensor(11)
    wide = reference.dropout_mask(seed, 9, 2, 33, 0.5, 0)
    torch.testing.assert_close(wide[:5, :1, :17], reference.dropout_mask(seed, 5, 1, 17, 0.5, 0))


@pytest.mark.parametrize(("rate", "value"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_mask_at_the_ends(rate: float, value: float) -> None:
    assert (reference.dropout_mask(torch.tensor(3), 5, 2, 7, rate, 0) == value).all()


def test_local_response_norm_of_dimensions_that_do_not_lie_together() -> None:
    """PyTorch's own fails on it."""
    x = torch.randn(2, 3, 4, 5, 6, **F64)
    apart = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(
        reference.local_response_norm(apart), reference.local_response_norm(x)
    )
