"""Encoders of transformers, from tiny random models on disk: what they compute, and what of them is trained."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avemo.cli import main
from avemo.data.features import (
    Clip,
    FeatureConfig,
    levels_of,
    log_spectrogram,
    quantize,
    store_sound,
)
from avemo.data.inputs import to_sample
from avemo.evaluation.evaluate import evaluate
from avemo.models import ModelConfig, build_model
from avemo.models.config import AudioEncoderConfig, VideoEncoderConfig
from avemo.models.transformer import FrameTransformer, SpeechTransformer, resolved
from avemo.training import checkpoint
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.optimizer import build_optimizer, build_schedule
from avemo.training.train import train
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.tiny_cache import write_cache

transformers = pytest.importorskip("transformers")

BODY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
EARS = BODY | {
    "conv_dim": (4, 4),
    "conv_kernel": (40, 8),
    "conv_stride": (20, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
EYES = BODY | {"image_size": 12, "patch_size": 6}
SPEECH = ("Wav2Vec2Config", "HubertConfig", "WavLMConfig", "Data2VecAudioConfig")
SAMPLES = 160


def saved(folder: Path, config: str, **settings: Any) -> str:
    """A random model on disk, and its name."""
    torch.manual_seed(3)
    built = getattr(transformers, config)(**settings)
    transformers.AutoModel.from_config(built).save_pretrained(folder)
    return str(folder)


def listener(name: str, **changes: Any) -> tuple[ModelConfig, SpeechTransformer]:
    from avemo.models.weights import start_weights

    audio = replace(AudioEncoderConfig(encoder=name), **changes)
    config = resolved(replace(tiny_config("audio"), audio=audio))
    model = build_model(config, bins=SAMPLES, face_size=16, classes=4)
    start_weights(model, config)
    encoder = model.audio.encoder
    assert isinstance(encoder, SpeechTransformer)
    return config, encoder


def sound(*frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(len(frames), SAMPLES, max(frames), generator=generator)
    return x, torch.tensor(frames)


@pytest.mark.parametrize("config", SPEECH)
def test_a_speech_model_hears_each_clips_samples_and_no_padding(
    config: str, tmp_path: Path
) -> None:
    name = saved(tmp_path / "m", config, **EARS)
    x, lengths = sound(30, 12, 1)
    x = x.double()
    encoder = listener(name)[1].double().eval()
    encoded, frames = encoder(x, lengths)
    theirs = transformers.AutoModel.from_pretrained(name).double().eval()
    for row, n in enumerate(lengths.tolist()):
        samples = torch.cat([x[row, :, t] for t in range(n)])
        samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-5).sqrt()
        samples = F.pad(samples, (0, max(0, 1600 - len(samples))))
        expected = theirs(samples[None]).last_hidden_state[0]
        assert int(frames[row]) == len(expected)
        torch.testing.assert_close(encoded[row, : len(expected)], expected, rtol=1e-9, atol=1e-9)
        assert not encoded[row, len(expected) :].any()


def test_a_picture_model_sees_each_face_and_a_film_model_each_window(tmp_path: Path) -> None:
    faces = torch.randn(2, 7, 16, 16)
    lengths = torch.tensor([7, 3])
    for config, settings in (
        ("ViTConfig", {}),
        ("VideoMAEConfig", {"num_frames": 4, "tubelet_size": 2}),
    ):
        name = saved(tmp_path / config, config, **EYES, **settings)
        model_config = resolved(
            replace(tiny_config("video"), video=VideoEncoderConfig(encoder=name))
        )
        from avemo.models.weights import start_weights

        model = build_model(model_config, bins=20, face_size=16, classes=4).eval()
        start_weights(model, model_config)
        encoder = model.video.encoder
        assert isinstance(encoder, FrameTransformer)
        encoded = encoder(faces, lengths)
        assert encoded.shape == (2, 7, 8)
        assert not encoded[1, 3:].any()
        theirs = transformers.AutoModel.from_pretrained(name).eval()
        shown = F.interpolate(faces[1, :3, None], (12, 12), mode="bilinear", antialias=True)
        shown = shown.repeat(1, 3, 1, 1)
        if config == "ViTConfig":
            expected = theirs(shown).last_hidden_state.mean(1)
        else:
            film = torch.cat([shown, shown[-1:]])[None]  # the last one again, to make four
            tubes = theirs(film).last_hidden_state.reshape(2, 4, 8).mean(1)  # two by two frames
            expected = tubes[[0, 0, 1]]
        torch.testing.assert_close(encoded[1, :3], expected, rtol=1e-4, atol=1e-5)


def test_frozen_partly_frozen_and_at_a_rate_of_its_own(tmp_path: Path) -> None:
    name = saved(tmp_path / "m", "WavLMConfig", **EARS)
    x, lengths = sound(20, 15)
    _, frozen = listener(name, trained_layers=0)
    assert not any(p.requires_grad for p in frozen.parameters())
    frozen.train()
    assert torch.equal(frozen(x, lengths)[0], frozen(x, lengths)[0])  # it drops nothing
    _, last = listener(name, trained_layers=1, rate=0.1)
    trained = {n for n, p in last.named_parameters() if p.requires_grad}
    assert trained
    assert all(n.startswith("model.encoder.layers.2.") for n in trained)
    with pytest.raises(ValueError, match="trained_layers must be 0 to 3"):
        listener(name, trained_layers=4)
    config = OptimizerConfig(learning_rate=0.5, weight_decay=0.25)
    whole = torch.nn.ModuleDict({"encoder": last, "head": torch.nn.Linear(8, 2)})
    optimizer = build_optimizer(whole, config)
    highest = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {highest[p] for p in last.parameters() if p.requires_grad} == {0.05}
    assert {highest[p] for p in whole["head"].parameters()} == {0.5}
    assert (decay[whole["head"].weight], decay[whole["head"].bias]) == (0.25, 0.0)
    assert not any(p in highest for p in last.parameters() if not p.requires_grad)
    for schedule in ("one_cycle", "cosine", "step", "constant"):
        try:
            chosen = replace(config, schedule=schedule)  # type: ignore[arg-type]
        except ValueError:
            continue
        moved = build_optimizer(whole, chosen)
        steps = build_schedule(moved, chosen, 10)
        for _ in range(5):
            rates = {share: set() for share in (0.05, 0.5)}  # type: ignore[var-annotated]
            for group in moved.param_groups:
                for p in group["params"]:
                    rates[highest[p]].add(group["lr"])
            (slow,), (fast,) = rates[0.05], rates[0.5]
            assert slow == pytest.approx(fast / 10)
            moved.step()
            steps.step()


def test_am_fbp_on_a_speech_model_learns_and_its_checkpoint_needs_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = saved(tmp_path / "wavlm", "WavLMConfig", **EARS, layerdrop=0.0)
    cache = write_cache(tmp_path / "cache", {"train": 8, "val": 8}, sound="waveform")
    model = replace(tiny_config(), audio=AudioEncoderConfig(encoder=name, rate=0.5))
    said: dict[str, Any] = {
        "optimizer": OptimizerConfig(learning_rate=0.01, label_smoothing=0.0),
        "trainer": TrainerConfig(epochs=8, accelerator="cpu"),
    }
    result = train(data=DataConfig(cache, batch_size=4), model=model, out=tmp_path / "run", **said)
    shutil.rmtree(name)
    scores = evaluate(result.best, cache, split="train", out=tmp_path / "scores")
    assert scores.accuracy == 1
    assert checkpoint.load(result.last).config.model.audio.architecture["model_type"] == "wavlm"
    spectrograms = write_cache(tmp_path / "spectrograms", {"train": 4, "val": 4})
    for encoder, folder, message in (
        (name, spectrograms, "finds no model"),
        ("1d_abfcn", cache, "hears a spectrogram, and the cache keeps a waveform"),
    ):
        arguments = ["--data.cache", str(folder), "--model.audio.encoder", encoder]
        assert main(["train", *arguments, "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


def test_the_waveform_is_kept_to_16_bits_and_shown_as_the_same_spectrogram() -> None:
    spectrum, waves = FeatureConfig(), FeatureConfig(sound="waveform")
    rng = np.random.default_rng(0)
    waveform = (0.3 * rng.standard_normal(16000 + 77)).clip(-1, 1).astype(np.float32)
    stored = store_sound(waveform, waves)
    assert (stored.dtype, stored.shape) == (np.int16, (101, 160))
    clip = Clip(stored, np.zeros((13, 64, 64), np.uint8), np.ones(13, bool))
    heard = to_sample(clip, waves).audio
    assert heard.shape == (160, 101)
    np.testing.assert_allclose(
        heard.T.reshape(-1)[: len(waveform)], waveform, atol=0.5 / 32767 + 1e-7
    )
    assert store_sound(waveform, spectrum).shape == (101, 200)
    shown = levels_of(stored, waves)
    expected = log_spectrogram(waveform, spectrum)
    loud = (
        expected[:-3] > -70
    )  # 16 bits have a noise of their own, and the last frames hear what fills up
    np.testing.assert_allclose(shown[:-3][loud], expected[:-3][loud], atol=0.05)
    assert np.array_equal(store_sound(waveform, spectrum), quantize(expected, spectrum))
