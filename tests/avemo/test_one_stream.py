"""Files that have only sound or only a picture, from `prepare` to `predict`."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from avemo.data.augment import AugmentConfig
from avemo.data.cache import ClipCache
from avemo.data.datamodule import ClipDataModule
from avemo.data.features import FeatureConfig, extract, fill_missing
from avemo.data.prepare import PrepareReport, prepare
from avemo.evaluation.evaluate import evaluate
from avemo.evaluation.predict import predict
from avemo.training.config import DataConfig, TrainerConfig
from avemo.training.train import train
from tests.avemo.data.media_files import no_face, talking_head, tone, write_media
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_config

SOUND, PICTURE = ("a.mp3", "a.wav", "a.m4a"), ("a.gif", "a.mp4", "a.mkv")
FILES = dict.fromkeys(SOUND, ("audio",)) | dict.fromkeys(PICTURE, ("video",))
BOTH = {f"both{i}.mp4": ("audio", "video") for i in range(2)}
CODECS = {"a.mp3": "libmp3lame", "a.wav": "pcm_s16le"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind, the same for training and validation, two with both streams, and two whose
    one stream is of no use."""
    root = tmp_path_factory.mktemp("corpus")
    for name in SOUND:
        write_media(root / name, None, tone(1.0), audio_codec=CODECS.get(name, "aac"))
    for name in PICTURE:
        codec = {"video_codec": "gif", "pixel_format": "rgb8"} if name == "a.gif" else {}
        write_media(root / name, talking_head(25), None, **codec)
    for number, name in enumerate(BOTH):
        write_media(root / name, talking_head(25), tone(1.0, hertz=300.0 * (number + 1)))
    write_media(root / "silent.wav", None, tone(1.0, level=0.0), audio_codec="pcm_s16le")
    write_media(root / "faceless.mkv", no_face(25), None)
    rows = []
    for number, name in enumerate([*FILES, *BOTH]):
        for split in ("train", "val"):
            copy = root / split / name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes((root / name).read_bytes())
            rows.append((f"{split}/{name}", ("glad", "sad")[number % 2], split))
    rows += [("silent.wav", "sad", "train"), ("faceless.mkv", "sad", "train")]
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return root


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    out = tmp_path_factory.mktemp("cache")
    report = prepare("manifest", corpus, out=out, workers=2, bins=BINS, face_size=FACE_SIZE)
    return out, report


def test_prepare_says_which_streams_a_clip_has(
    corpus: Path, prepared: tuple[Path, PrepareReport]
) -> None:
    out, report = prepared
    assert report.alone == {"audio": 6, "video": 6}
    assert report.errors == {"silent audio": 1, "no face": 1}
    assert "prepared 16 clips, 6 of them audio alone, 6 of them video alone in" in str(report)
    cache = ClipCache(out)
    assert {c.path: c.streams for c in cache.clips} == {
        f"{split}/{name}": streams
        for name, streams in (FILES | BOTH).items()
        for split in ("train", "val")
    }
    for number, info in enumerate(cache.clips):
        clip = cache[number]
        direct = extract(corpus / info.path, cache.features)
        for stored, made in zip(clip, direct, strict=True):
            np.testing.assert_array_equal(stored, made)
        filled = fill_missing(clip, cache.features)
        assert 12 <= len(filled.video) <= 14  # about a second, as long as the other stream
        assert abs(len(filled.audio) - 8 * len(filled.video)) <= 8


def run(cache: Path, out: Path, name: str, dropout: float = 0.0) -> Path:
    augment = AugmentConfig(modality_dropout=dropout)
    return train(
        data=DataConfig(cache, batch_size=4, augment=augment),
        model=tiny_config(name),
        trainer=TrainerConfig(epochs=1, accelerator="cpu"),
        out=out,
        backend="reference",
    ).best


@pytest.mark.parametrize(
    ("name", "dropout", "taken", "left_out"),
    [
        ("audio", 0.0, {"audio"}, "3 of the 8 clips of the split {} are left out: 3 have no sound"),
        (
            "video",
            0.0,
            {"video"},
            "3 of the 8 clips of the split {} are left out: 3 have no picture",
        ),
        (
            "am_fbp",
            0.0,
            {"audio", "video"},
            "6 of the 8 clips of the split {} are left out: 3 have no picture and 3 have no sound",
        ),
        ("am_fbp", 0.5, set(), ""),
    ],
)
def test_a_system_takes_the_clips_that_have_its_streams(
    corpus: Path,
    prepared: tuple[Path, PrepareReport],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    dropout: float,
    taken: set[str],
    left_out: str,
) -> None:
    cache = prepared[0]
    files = [n for n, streams in (FILES | BOTH).items() if taken <= set(streams)]
    best = run(cache, tmp_path / "run", name, dropout)
    said = capsys.readouterr().out
    for split in ("train", "val"):
        assert (left_out.format(repr(split)) in said) if left_out else ("left out" not in said)

    assert evaluate(best, cache, split="val").clips == len(files)
    with (best.parent / "evaluation-val" / "predictions.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"val/{n}" for n in files]
    assert ("left out" in capsys.readouterr().out) == bool(left_out)

    given = [corpus / n for n in (FILES | BOTH)]
    predictions = predict(best, given, out=tmp_path / "predictions")
    assert [p.clip.name for p in predictions] == files
    assert all(p.picture and p.picture.is_file() for p in predictions)
    refused = capsys.readouterr().err.count("stream: this model needs")
    assert refused == len(given) - len(files)


def test_a_fusion_system_refuses_a_cache_without_a_whole_clip(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "path,label,split\ntrain/a.wav,sad,train\ntrain/a.mp4,glad,train\nval/a.wav,sad,val\n"
    )
    cache = tmp_path / "cache"
    prepare(str(tmp_path / "m.csv"), corpus, out=cache, bins=BINS, face_size=FACE_SIZE)
    with pytest.raises(ValueError, match="2 of the 2 clips of the split 'train' are left out"):
        run(cache, tmp_path / "run", "am_fbp")
    assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ValueError, match="1 of the 1 clips of the split 'val' are left out"):
        run(cache, tmp_path / "run", "video")


def test_long_clips_with_one_stream_are_cropped(prepared: tuple[Path, PrepareReport]) -> None:
    module = ClipDataModule(prepared[0], batch_size=20, max_seconds=0.4)
    (batch,) = module.val_dataloader()
    assert batch.video_lengths.tolist() == [5] * len(batch.names)
    assert all(abs(n - 41) <= 1 for n in batch.audio_lengths.tolist())
    streams = [(FILES | BOTH)[Path(name).name] for name in batch.names]
    assert batch.heard.any(1).tolist() == ["audio" in s for s in streams]
    assert batch.seen.any(1).tolist() == ["video" in s for s in streams]


def test_a_cover_picture_is_no_picture(tmp_path: Path) -> None:
    """MP3 files have one picture more often than not."""
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(image), *cover.encode(None)])
        wave = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        wave.sample_rate = 16000
        container.mux([*sound.encode(wave), *sound.encode(None)])
    assert extract(path, FeatureConfig()).streams == ("audio",)
