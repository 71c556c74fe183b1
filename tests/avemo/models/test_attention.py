"""Attention where frames are missing, and a lambda that is learned."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fbp_kernels as fk
from avemo.models.attention import set_scales
from avemo.models.backend import use_backend
from avemo.models.config import AttentionConfig
from avemo.models.ragged import inside
from avemo.models.stream import Pooled, VideoStream, among
from avemo.training import checkpoint
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.train import train
from tests.avemo.models.test_models import attend
from tests.avemo.models.tiny_model import FACE_SIZE, tiny_batch, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache

MISSING = {0: (0, 3, 7), 3: (4,), 2: (0,)}  # frames without a face, by clip


def blinded() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    audio, a_len, video, v_len = tiny_batch()
    for row, frames in MISSING.items():
        video[row, list(frames)] = 0
    return audio, a_len, video, v_len


def stream() -> VideoStream:
    torch.manual_seed(3)
    return VideoStream(tiny_config(), FACE_SIZE, 3).eval()


def test_attention_is_that_of_the_faces_alone_and_trunks_keep_their_time() -> None:
    """Frame by frame in float64: a softmax over the frames with a face, sums over equal parts of all."""
    ours = stream().double()
    _, _, video, v_len = blinded()
    video = video.double()
    pooled = ours(video, v_len)
    for row, n in enumerate(v_len.tolist()):
        there = [t for t in range(n) if t not in MISSING.get(row, ())]
        alone = ours.encoder(video[row : row + 1, there], torch.tensor([len(there)]))[0]
        weights, _ = attend(alone, ours.attention, 1, 0.6)
        expected = torch.zeros(video.shape[1], dtype=torch.float64)
        expected[there] = weights
        torch.testing.assert_close(pooled.attention[row], expected, rtol=1e-12, atol=1e-12)
        trunks = torch.zeros(3, alone.shape[1], dtype=torch.float64)
        for weight, t, frame in zip(weights, there, alone, strict=True):
            (h,) = (h for h in range(3) if h * n // 3 <= t < (h + 1) * n // 3)
            trunks[h] += weight * frame
        torch.testing.assert_close(pooled.trunks[row], trunks, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pooled.vector[row], trunks.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_frame_without_a_face_gets_no_weight_at_all(backend: str) -> None:
    model = tiny_model()
    use_backend(model, backend)  # type: ignore[arg-type]
    attention = model(*blinded()).video_attention
    for row, frames in MISSING.items():
        assert not attention[row, list(frames)].any()
        assert attention[row].sum().item() == pytest.approx(1, abs=1e-6)


def test_both_backends_are_as_near_to_float64() -> None:
    """Outputs and gradients, with frames missing, in root mean square over many draws: in one of them chance alone
    makes either backend's largest error three times the other's."""
    draws = torch.stack([_errors(seed) for seed in range(50)]).square().mean(0).sqrt()
    for plain, fused in draws.T:
        assert 0 < fused <= 1.25 * plain


def _errors(seed: int) -> Tensor:
    """The largest errors of the reference and of the native backend: (2, outputs and gradients)."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(5, 13, 11, generator=generator)
    lengths = torch.randint(1, 14, (5,), generator=generator)
    seen = inside(lengths, 13) & (torch.rand(5, 13, generator=generator) < 0.7)
    results = []
    for dtype, backend in (
        (torch.float64, "reference"),
        (torch.float32, "reference"),
        (torch.float32, "native"),
    ):
        torch.manual_seed(seed)
        pool = fk.AttentionPool(11, 4, 3, 2.5, backend=backend).to(dtype)
        x = frames.where(seen[..., None], 0.0).to(dtype).requires_grad_()
        pooled = among(seen, Pooled(*pool(x, lengths)))
        (pooled.vector.square().sum() + (pooled.trunks * 0.7).sin().sum()).backward()
        results.append([*pooled, x.grad, *(p.grad for p in pool.parameters())])
    exact, *found = results
    return torch.tensor(
        [[(a - b).abs().max().item() for a, b in zip(one, exact, strict=True)] for one in found]
    )


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_clip_without_any_face_is_constant_with_finite_gradients(backend: str) -> None:
    """Of length 1, so that products with the sound's vector are not lost; trunks add up to it."""
    model = tiny_model().train()
    use_backend(model, backend)  # type: ignore[arg-type]
    audio, a_len, video, v_len = tiny_batch()
    video[1:] = 0
    video.requires_grad_()
    pooled = model.video(video, v_len)
    width = pooled.vector.shape[1]
    torch.testing.assert_close(pooled.vector[1:], torch.full((3, width), width**-0.5))
    torch.testing.assert_close(pooled.trunks[1:].sum(1), pooled.vector[1:])
    assert (pooled.trunks[1:] == pooled.trunks[1, 0, 0]).all()
    assert not pooled.attention[1:].any()
    model(audio, a_len, video, v_len).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name


def test_what_lies_past_the_end_is_no_face() -> None:
    _, _, video, v_len = blinded()
    spoiled = video.clone()
    for row, n in enumerate(v_len):
        spoiled[row, n:] = float("nan")
    ours = stream()
    for clean, other in zip(ours(video, v_len), ours(spoiled, v_len), strict=True):
        assert torch.equal(clean, other)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_learned_lambda_is_the_fixed_one_of_its_value_and_learns(backend: str) -> None:
    torch.manual_seed(0)
    learned = fk.AttentionPool(5, 3, trunks=2, scale=1.7, learned_scale=True, backend=backend)
    fixed = fk.AttentionPool(5, 3, trunks=2, scale=1.7, backend=backend)
    fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "log_scale"})
    x, lengths = torch.randn(3, 6, 5), torch.tensor([6, 2, 4])
    for ours, theirs in zip(learned(x, lengths), fixed(x, lengths), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)

    def loss(module: nn.Module, dtype: torch.dtype) -> Tensor:
        return module(x.to(dtype), lengths)[1].square().sum()

    loss(learned, torch.float32).backward()
    step = 1e-6
    nearby = []
    for sign in (1, -1):
        moved = fk.AttentionPool(
            5, 3, trunks=2, scale=1.7, learned_scale=True, backend="reference", dtype=torch.float64
        )
        moved.load_state_dict(learned.state_dict())
        with torch.no_grad():
            moved.log_scale += sign * step
        nearby.append(loss(moved, torch.float64).item())
    slope = (nearby[0] - nearby[1]) / (2 * step)
    assert learned.log_scale.grad.item() == pytest.approx(slope, rel=1e-4)


def test_a_learned_lambda_is_positive() -> None:
    with pytest.raises(ValueError, match=r"scale must be positive to be learned, got 0\.0"):
        fk.AttentionPool(5, 3, scale=0.0, learned_scale=True)


def test_models_learn_lambda_when_asked_to() -> None:
    config = AttentionConfig(hidden=5, scale=2.0, learned=True)
    model = tiny_model(
        audio_attention=config, video_attention=dataclasses.replace(config, hidden=4)
    )
    names = [name for name, _ in model.named_parameters() if name.endswith("log_scale")]
    assert names == ["audio.attention.log_scale", "video.attention.log_scale"]
    assert model.audio.attention.log_scale.exp().item() == pytest.approx(2)
    plain = tiny_model()
    assert not [name for name in plain.state_dict() if "log_scale" in name]


def test_a_lambda_of_training_is_another_one_than_that_which_is_saved() -> None:
    config = AttentionConfig(hidden=5, scale=8.0, scale_in_training=0.5)
    model = tiny_model(audio_attention=config)
    pool = model.audio.attention
    assert pool.log_scale.exp().item() == pytest.approx(0.5)  # a new model is one to train
    assert not pool.log_scale.requires_grad
    assert model.video.attention.log_scale is None
    for training, expected in ((False, 8.0), (True, 0.5), (False, 8.0)):
        set_scales(model, training=training)
        assert pool.log_scale.exp().item() == pytest.approx(expected)
    again = tiny_model(audio_attention=config)
    again.load_state_dict(model.state_dict())
    sharp = tiny_model(audio_attention=AttentionConfig(hidden=5, scale=8.0))
    for ours, theirs, fixed in zip(*(m(*tiny_batch()) for m in (again, model, sharp)), strict=True):
        assert ours is theirs or torch.equal(ours, theirs)
        torch.testing.assert_close(ours, fixed)
    with pytest.raises(ValueError, match="not learned, and both positive"):
        AttentionConfig(learned=True, scale_in_training=1.0)
    with pytest.raises(ValueError, match="both positive"):
        AttentionConfig(scale=-1.0, scale_in_training=1.0)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_steps_have_the_lambda_of_training_and_files_the_other_one(
    ema: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where weights are averaged, and after a pause."""
    cache = write_cache(tmp_path / "cache")
    attention = AttentionConfig(hidden=5, scale=4.0, scale_in_training=1.0)
    seen: dict[bool, set[float]] = {True: set(), False: set()}
    forward = fk.AttentionPool.forward

    def spy(pool: fk.AttentionPool, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert pool.log_scale is not None
        seen[pool.training].add(round(pool.log_scale.exp().item(), 6))
        return forward(pool, *arguments)

    monkeypatch.setattr(fk.AttentionPool, "forward", spy)
    for epochs in (1, 2):
        result = train(
            data=DataConfig(cache, batch_size=6),
            model=tiny_config(audio_attention=attention, video_attention=attention),
            optimizer=OptimizerConfig(ema=ema),
            trainer=TrainerConfig(epochs=epochs, accelerator="cpu"),
            out=tmp_path / "run",
            resume=epochs > 1,
        )
        for file in (result.last, result.best):
            model = checkpoint.load(file).model
            for stream in (model.audio, model.video):
                assert stream.attention.log_scale.exp().item() == pytest.approx(4.0)
    assert seen == {True: {1.0}, False: {4.0}}
