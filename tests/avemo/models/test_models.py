"""The systems as a whole, against the formulas of the paper and of each other."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fbp_kernels
from avemo.models import MODELS, build_model
from avemo.models.backend import use_backend
from avemo.models.config import FusionConfig
from tests.avemo.models.tiny_model import tiny_batch, tiny_config, tiny_model
from tests.fbp_kernels.accelerating.zoo import snapshot

TRAINED = [
    name for name in MODELS if name != "lbp_top_svm"
]  # which has neither weights nor operators


def attend(x: Tensor, pool: nn.Module, trunks: int, scale: float) -> tuple[Tensor, Tensor]:
    """One clip's frames x (T, C) to its weights (T,) and trunk vectors (trunks, C), frame by frame."""
    scores = [
        sum(
            pool.query[j] * torch.tanh(x[t] @ pool.weight[:, j] + pool.bias[j])
            for j in range(len(pool.query))
        )
        for t in range(len(x))
    ]
    exponentials = [torch.exp(scale * score) for score in scores]
    weights = torch.stack([e / sum(exponentials) for e in exponentials])
    n = len(x)
    vectors = []
    for h in range(trunks):
        vector = torch.zeros(x.shape[1], dtype=x.dtype)
        for t in range(h * n // trunks, (h + 1) * n // trunks):
            vector = vector + weights[t] * x[t]
        vectors.append(vector)
    return weights, torch.stack(vectors)


def pool_bilinear(a: Tensor, v: Tensor, p: Tensor, q: Tensor, factor: int) -> Tensor:
    """sum over k of (a . p_j^k) (v . q_j^k), output by output."""
    outputs = p.shape[1] // factor
    return torch.stack(
        [
            sum((a @ p[:, o * factor + k]) * (v @ q[:, o * factor + k]) for k in range(factor))
            for o in range(outputs)
        ]
    )


def test_am_fbp_is_the_formulas_of_the_paper() -> None:
    """Encoders apart, every number is computed again in float64, clip by clip, from the definitions."""
    model = tiny_model().double()
    audio, a_len, video, v_len = tiny_batch()
    audio, video = audio.double(), video.double()
    ours = model(audio, a_len, video, v_len)
    a_encoded, a_frames = model.audio.encoder(audio, a_len)
    v_encoded = model.video.encoder(video, v_len)
    fusion = model.fusion
    for b in range(len(a_len)):
        a_weights, a_trunks = attend(a_encoded[b, : a_frames[b]], model.audio.attention, 3, 1.7)
        v_weights, v_trunks = attend(v_encoded[b, : v_len[b]], model.video.attention, 3, 0.6)
        a, v = a_trunks.sum(0), v_trunks.sum(0)
        a_norm, v_norm = a.square().sum().sqrt(), v.square().sum().sqrt()
        mu, eta = a_norm / (a_norm + v_norm), v_norm / (a_norm + v_norm)
        level_global = pool_bilinear(mu * a, eta * v, fusion.p, fusion.q, 3)
        level_trunks = sum(
            pool_bilinear(a_trunks[h], v_trunks[h], fusion.p_trunks[h], fusion.q_trunks[h], 2)
            for h in range(3)
        )
        normed = [F.layer_norm(level, level.shape) for level in (level_global, level_trunks)]
        logits = model.classifier.weight @ torch.cat(normed) + model.classifier.bias
        torch.testing.assert_close(ours.logits[b], logits, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            ours.audio_attention[b, : a_frames[b]], a_weights, rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            ours.video_attention[b, : v_len[b]], v_weights, rtol=1e-12, atol=1e-12
        )
        assert not ours.audio_attention[b, a_frames[b] :].any()
        assert not ours.video_attention[b, v_len[b] :].any()


def test_trunks_add_up_to_the_global_vector() -> None:
    model = tiny_model().double()
    audio, a_len, video, v_len = tiny_batch()
    for stream, inputs, lengths in ((model.audio, audio, a_len), (model.video, video, v_len)):
        pooled = stream(inputs.double(), lengths)
        torch.testing.assert_close(pooled.trunks.sum(1), pooled.vector, rtol=1e-12, atol=1e-12)
        ones = torch.ones(len(lengths), dtype=torch.float64)
        torch.testing.assert_close(pooled.attention.sum(1), ones, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_is_the_same_alone_and_in_a_batch(name: str) -> None:
    model = tiny_model(name).double()
    audio, a_len, video, v_len = tiny_batch()
    audio, video = audio.double(), video.double()
    together = model(audio, a_len, video, v_len).logits
    for b in range(len(a_len)):
        row = slice(b, b + 1)
        alone = model(audio[row, :, : a_len[b]], a_len[row], video[row, : v_len[b]], v_len[row])
        torch.testing.assert_close(alone.logits[0], together[b], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_learns(name: str) -> None:
    model = tiny_model(name).double().train()
    audio, a_len, video, v_len = tiny_batch((61, 40, 55, 30), (8, 6, 7, 5))
    logits = model(audio.double(), a_len, video.double(), v_len).logits
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_single_systems_take_no_notice_of_the_other_stream() -> None:
    audio, a_len, video, v_len = tiny_batch()
    nothing = torch.full_like
    listener, viewer = tiny_model("audio"), tiny_model("video")
    heard = listener(audio, a_len, video, v_len)
    deaf = listener(audio, a_len, nothing(video, float("nan")), torch.ones_like(v_len))
    assert torch.equal(heard.logits, deaf.logits)
    assert heard.video_attention is None
    seen = viewer(audio, a_len, video, v_len)
    blind = viewer(nothing(audio, float("nan")), torch.ones_like(a_len), video, v_len)
    assert torch.equal(seen.logits, blind.logits)
    assert seen.audio_attention is None
    assert not torch.equal(heard.logits, listener(audio.flip(0), a_len, video, v_len).logits)
    assert not torch.equal(seen.logits, viewer(audio, a_len, video.flip(0), v_len).logits)


def test_both_streams_and_both_levels_reach_the_fused_result() -> None:
    model = tiny_model()
    audio, a_len, video, v_len = tiny_batch()
    fused = model(audio, a_len, video, v_len).logits
    assert not torch.allclose(fused, model(audio.roll(1, 2), a_len, video, v_len).logits)
    assert not torch.allclose(fused, model(audio, a_len, video.roll(1, 2), v_len).logits)
    for weights in (model.fusion.p, model.fusion.p_trunks):
        kept = weights.detach().clone()
        with torch.no_grad():
            weights.zero_()
        assert not torch.allclose(fused, model(audio, a_len, video, v_len).logits)
        with torch.no_grad():
            weights.copy_(kept)


@pytest.mark.parametrize("name", TRAINED)
def test_backends_change_neither_keys_nor_weights_nor_results(name: str) -> None:
    model = tiny_model(name)
    batch = tiny_batch()
    expected, before = model(*batch).logits, copy.deepcopy(model.state_dict())
    use_backend(model)
    assert list(model.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    torch.testing.assert_close(model(*batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_backend_is_left_again_without_a_trace() -> None:
    model = tiny_model()
    before = snapshot(model)
    use_backend(model)
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last)
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    assert snapshot(model) != before
    fbp_kernels.restore(model)
    assert snapshot(model) == before


def test_models_are_plain_pytorch_until_told_otherwise() -> None:
    backends = {m.backend for m in tiny_model().modules() if hasattr(m, "backend")}
    assert backends == {"reference"}


def test_a_backend_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")  # without its interpreter Triton needs a GPU
    with pytest.raises(ValueError, match="'triton' cannot be used"):
        use_backend(tiny_model(), "triton")


def test_unknown_model_and_bad_sizes_name_the_setting() -> None:
    sizes = {"bins": 20, "face_size": 16, "classes": 4}
    with pytest.raises(ValueError, match=r"model\.name must be one of am_fbp, .*; got 'x'"):
        build_model(tiny_config("x"), **sizes)
    with pytest.raises(ValueError, match="factor is 0"):
        build_model(tiny_config(fusion=FusionConfig(global_factor=0)), **sizes)
