"""Attention goes to where the emotion shows, as the configuration `small` trains it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avemo.cli import find_config
from avemo.data.cache import INDEX, ClipInfo, index_json, shard_content
from avemo.data.features import Clip, FeatureConfig
from avemo.evaluation.evaluate import evaluate
from avemo.models import ModelConfig
from avemo.models.config import AudioEncoderConfig, FusionConfig, VideoEncoderConfig
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig, from_dict
from avemo.training.train import train

CLASSES = ("angry", "happy", "neutral", "sad")
BINS, FACE_SIZE, FRAMES = 20, 16, 24
SPLITS = {"train": (64, 8), "val": (16, 2), "test": (40, 5)}  # clips, speakers
SHARE = 0.5  # of the time in which the emotion shows
RATE, SEED = 0.002, 2


def write_corpus(folder: Path, alike: bool) -> None:
    """A cache and conditions.csv: every speaker has a face and a voice of its own, which an emotion changes from a
    random moment on for half of the clip, rising and falling as in `avemo synth`. A neutral clip has none. Two emotions
    may sound alike."""
    rng = np.random.default_rng(0)
    features = FeatureConfig(bins=BINS, face_size=FACE_SIZE)
    looks = rng.normal(0, 25, (len(CLASSES), FACE_SIZE, FACE_SIZE))
    sounds = rng.normal(0, 35, (len(CLASSES), BINS))
    if alike:
        sounds[CLASSES.index("happy")] = sounds[CLASSES.index("angry")]
    looks[CLASSES.index("neutral")] = sounds[CLASSES.index("neutral")] = 0
    infos, clips, rows = [], [], []
    for split, (count, speakers) in SPLITS.items():
        faces = rng.normal(110, 30, (speakers, FACE_SIZE, FACE_SIZE))
        voices = rng.normal(110, 10, (speakers, BINS))
        for number in range(count):
            turn, label = divmod(number, len(CLASSES))
            speaker = turn % speakers
            start = rng.uniform(0, 1 - SHARE)

            def made(frames: int, usual: np.ndarray, mark: np.ndarray, start: float) -> np.ndarray:
                place = ((np.arange(frames) + 0.5) / frames - start) / SHARE
                shape = np.clip(4 * np.minimum(place, 1 - place), 0, 1)
                strength = (0.5 - 0.5 * np.cos(np.pi * shape)).reshape(-1, *[1] * usual.ndim)
                noise = rng.normal(0, 12, (frames, *usual.shape))
                return np.clip(usual + strength * mark + noise, 0, 255).astype(np.uint8)

            audio = made(8 * FRAMES + 1, voices[speaker], sounds[label], start)
            video = made(FRAMES, faces[speaker], looks[label], start)
            info = ClipInfo(
                path=f"{split}/{number}.mp4",
                label=CLASSES[label],
                speaker=f"{split}{speaker}",
                split=split,
                shard="0.safetensors",
                audio_offset=len(clips) * len(audio),
                audio_length=len(audio),
                video_offset=len(clips) * FRAMES,
                video_length=FRAMES,
            )
            seconds = info.seconds(features)
            intensity = int(CLASSES[label] != "neutral")
            rows.append(
                f"{info.path},{seconds},{intensity},{start * seconds},{(start + SHARE) * seconds}\n"
            )
            infos.append(info)
            clips.append(Clip(audio, video, np.ones(FRAMES, bool)))
    (folder / "0.safetensors").write_bytes(shard_content(clips))
    (folder / INDEX).write_text(index_json(features, infos), "utf-8")
    header = "path,duration_s,intensity,emphasis_start_s,emphasis_end_s\n"
    (folder / "conditions.csv").write_text(header + "".join(rows), "utf-8")


# In so short a training, an even lambda has not found the faces (1.4 times their share). Where each stream tells every
# emotion, a fusion without the streams' own loss has not looked at them after twelve epochs either (1.2 times).
@pytest.mark.slow
@pytest.mark.parametrize(
    ("alike", "epochs"), [(True, 8), (False, 12)], ids=["two sound alike", "either stream would do"]
)
def test_both_attentions_find_the_emotion_of_speakers_never_met(
    alike: bool, epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus, alike)
    small = yaml.safe_load(Path(find_config("small")).read_text("utf-8"))
    model = from_dict(ModelConfig, {"name": "am_fbp"} | small["model"])
    best = train(
        data=DataConfig(corpus, batch_size=8),
        model=replace(
            model,
            audio=AudioEncoderConfig((8, 8, 8, 8, 8), (1, 2), out_features=16),
            video=VideoEncoderConfig((8, 12), out_features=16),
            fusion=FusionConfig(16, 2, 16, 2, trunks=4),
        ),
        optimizer=OptimizerConfig(learning_rate=RATE),
        trainer=TrainerConfig(epochs=epochs, accelerator="cpu"),
        seed=SEED,
        out=tmp_path / "run",
    ).best
    scores = evaluate(best, corpus, conditions=corpus / "conditions.csv")
    shares = json.loads((best.parent / "evaluation-test" / "attention.json").read_text())
    said = capsys.readouterr().out
    assert scores.accuracy > 0.8
    for stream, share in shares.items():
        assert share["time"] == pytest.approx(SHARE)
        assert share["ratio"] >= 1.5, (stream, share)
        line = f"{share['attention']:.1%} in the expressive {SHARE:.1%} of the time: {share['ratio']:.2f} times"
        assert f"attention ({stream})".ljust(22) + line in said
