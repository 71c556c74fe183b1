"""The modules: layout of the parameters, what they compute, the published MFB."""

import pytest
import torch
import torch.nn.functional as F

import fbp_kernels as fk


def test_state_dicts_have_the_standard_layout() -> None:
    shapes = lambda m: {k: tuple(v.shape) for k, v in m.state_dict().items()}  # noqa: E731
    assert shapes(fk.FactorizedBilinearPooling(3, 4, 5, 2)) == {"p": (3, 10), "q": (4, 10)}
    assert shapes(fk.FactorizedBilinearPooling(3, 4, 5, 2, bias=True)) == {
        "p": (3, 10), "q": (4, 10), "p_bias": (10,), "q_bias": (10,),
    }  # fmt: skip
    assert shapes(fk.TrunkFactorizedBilinearPooling(3, 4, 5, 2, trunks=6, bias=True)) == {
        "p": (6, 3, 10), "q": (6, 4, 10), "p_bias": (6, 10), "q_bias": (6, 10),
    }  # fmt: skip
    assert shapes(fk.AdaptiveMultiLevelFBP(3, 4, 5, 2, 7, 3, 6)) == {
        "p": (3, 10), "q": (4, 10), "p_trunks": (6, 3, 21), "q_trunks": (6, 4, 21),
    }  # fmt: skip
    assert shapes(fk.AttentionPool(3, 4)) == {"weight": (3, 4), "bias": (4,), "query": (4,)}
    assert shapes(fk.LocalResponseNorm()) == {}
    assert shapes(fk.BatchNorm(3)) == shapes(torch.nn.BatchNorm2d(3))


def test_every_parameter_is_drawn_up_to_the_bound_of_its_own_width() -> None:
    """As `torch.nn.Linear` draws: uniform within one over the root of the width that is summed over."""
    modules: list[tuple[torch.nn.Module, dict[str, int]]] = [
        (
            fk.FactorizedBilinearPooling(9, 25, 16, 4, bias=True),
            {"p": 9, "q": 25, "p_bias": 9, "q_bias": 25},
        ),
        (
            fk.TrunkFactorizedBilinearPooling(9, 25, 16, 4, 3, bias=True),
            {"p": 9, "q": 25, "p_bias": 9, "q_bias": 25},
        ),
        (
            fk.AdaptiveMultiLevelFBP(9, 25, 16, 4, 32, 2, 3),
            {"p": 9, "q": 25, "p_trunks": 9, "q_trunks": 25},
        ),
        (fk.AttentionPool(9, 64), {"weight": 9, "bias": 9, "query": 64}),
    ]
    for module, widths in modules:
        drawn = dict(module.named_parameters())
        assert drawn.keys() == widths.keys()
        for name, width in widths.items():  # 64 values at least: the largest is near the bound
            reached = drawn[name].abs().max() * width**0.5
            assert 0.7 < reached <= 1, (type(module).__name__, name, reached)


def test_every_parameter_is_trained() -> None:
    modules = [
        (fk.FactorizedBilinearPooling(9, 16, 5, 2, bias=True), (2, 9), (2, 16)),
        (fk.TrunkFactorizedBilinearPooling(9, 16, 5, 2, 3, bias=True), (2, 3, 9), (2, 3, 16)),
    ]
    for module, *shapes in modules:
        module(*(torch.randn(s) for s in shapes)).square().sum().backward()
        assert all((p.grad != 0).any() for p in module.parameters())


def published_mfb(
    a: torch.Tensor, v: torch.Tensor, state: dict[str, torch.Tensor], K: int
) -> torch.Tensor:
    """Yu et al. 2017 as written: linear layers, product, sum over K, signed square root, L2."""
    u = F.linear(a, state["linear0.weight"], state["linear0.bias"])
    w = F.linear(v, state["linear1.weight"], state["linear1.bias"])
    z = (u * w).view(len(a), -1, K).sum(2)
    z = torch.sqrt(F.relu(z)) - torch.sqrt(F.relu(-z))
    return F.normalize(z)


@pytest.mark.parametrize("rows", [1, 6])
def test_mfb_checkpoint_gives_the_published_mfb(rows: int) -> None:
    C, D, O, K = 5, 7, 4, 3
    state = {
        "linear0.weight": torch.randn(O * K, C), "linear0.bias": torch.randn(O * K),
        "linear1.weight": torch.randn(O * K, D), "linear1.bias": torch.randn(O * K),
        "linear_out.weight": torch.randn(2, O), "linear_out.bias": torch.randn(2),
    }  # fmt: skip
    module = fk.FactorizedBilinearPooling.mfb(C, D, O, K)
    unused = module.load_mfb_state_dict({f"fusion.{k}": t for k, t in state.items()}, "fusion.")
    assert unused == ["fusion.linear_out.weight", "fusion.linear_out.bias"]
    a, v = torch.randn(rows, C), torch.randn(rows, D)
    torch.testing.assert_close(module.eval()(a, v), published_mfb(a, v, state, K))


def test_mfb_defaults_are_the_published_ones() -> None:
    module = fk.FactorizedBilinearPooling.mfb(8, 9)
    assert (module.out_features, module.factor, module.dropout, module.normalize) == (
        1000,
        5,
        0.1,
        True,
    )
    assert module.p_bias is not None
    assert fk.FactorizedBilinearPooling.mfb(8, 9, 10, 2, dropout=0.0).dropout == 0.0


def test_mfb_checkpoints_that_do_not_fit_change_nothing() -> None:
    module = fk.FactorizedBilinearPooling.mfb(5, 7, 4, 3)
    before = {k: t.clone() for k, t in module.state_dict().items()}
    good = {
        "linear0.weight": torch.randn(12, 5), "linear0.bias": torch.randn(12),
        "linear1.weight": torch.randn(12, 7), "linear1.bias": torch.randn(12),
    }  # fmt: skip
    with pytest.raises(KeyError, match=r"linear1\.bias is missing"):
        module.load_mfb_state_dict({k: t for k, t in good.items() if k != "linear1.bias"})
    with pytest.raises(ValueError, match=r"linear1.weight has shape \(12, 8\), expected \(12, 7\)"):
        module.load_mfb_state_dict(good | {"linear1.weight": torch.randn(12, 8)})
    with pytest.raises(ValueError, match="bias=False"):
        fk.FactorizedBilinearPooling(5, 7, 4, 3).load_mfb_state_dict(good)
    assert all(torch.equal(before[k], t) for k, t in module.state_dict().items())


def test_normalize_ends_each_part_with_unit_rows() -> None:
    module = fk.AdaptiveMultiLevelFBP(3, 4, 5, 2, 6, 3, 2, normalize=True)
    a, v, at, vt = torch.randn(7, 3), torch.randn(7, 4), torch.randn(7, 2, 3), torch.randn(7, 2, 4)
    z = module(a, v, at, vt)
    plain = fk.am_fbp(a, v, at, vt, module.p, module.q, module.p_trunks, module.q_trunks, 2, 3)
    parts = [fk.power_normalize(part) for part in plain.split([5, 6], 1)]
    torch.testing.assert_close(z, torch.cat(parts, 1))
    torch.testing.assert_close(z[:, :5].norm(dim=1), torch.ones(7))


def test_trunk_module_takes_lengths() -> None:
    module = fk.TrunkFactorizedBilinearPooling(3, 4, 5, 2, trunks=3)
    a, v = torch.randn(2, 3, 3), torch.randn(2, 3, 4)
    z = module(a, v, torch.tensor([1, 3]))
    first = fk.fbp(a[:1, 0], v[:1, 0], module.p[0], module.q[0], 2)
    torch.testing.assert_close(z[:1], first)


@pytest.mark.parametrize("name", ["a_features", "v_features", "out_features", "factor"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"a_features": 3, "v_features": 4, "out_features": 5, "factor": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        fk.FactorizedBilinearPooling(**sizes)
