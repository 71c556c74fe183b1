"""Prediction: numbers as the model gives them for what the file holds, and pictures that show it."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from avemo.data.features import FeatureConfig, extract
from avemo.data.inputs import collate, to_sample
from avemo.evaluation import predict as predict_module
from avemo.evaluation.plots import FACES, Stretch, attended_frames, draw_attention, save_picture
from avemo.evaluation.predict import _picture_paths, predict
from avemo.models import build_model
from avemo.training import checkpoint as checkpoints
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.data import crashing
from tests.avemo.data.media_files import no_face, talking_head, tone, write_clip, write_media
from tests.avemo.models.tiny_model import tiny_config

FEATURES = FeatureConfig(bins=20, face_size=16)
CLASSES = ("angry", "happy", "neutral", "sad")

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Writes a checkpoint of an untrained model."""

    def make(
        name: str = "am_fbp",
        max_seconds: float | None = 10.0,
        features: FeatureConfig = FEATURES,
        head: torch.Tensor | None = None,
        classes: tuple[str, ...] = CLASSES,
    ) -> Path:
        torch.manual_seed(0)
        config = TrainConfig(
            data=DataConfig(cache=Path("none"), max_seconds=max_seconds),
            model=tiny_config(name),
        )
        model = build_model(
            config.model, bins=features.bins, face_size=features.face_size, classes=len(classes)
        )
        if head is not None:
            model.classifier.bias.data = head
        path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
        checkpoints.save(path, model, config, classes, features)
        return path

    return make


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2.0)


def probabilities(path: Path, media: Path) -> dict[str, float]:
    """What the model says when it is called by hand."""
    trained = checkpoints.load(path)
    batch = collate([to_sample(extract(media, trained.features), trained.features)])
    with torch.no_grad():
        output = trained.model(*batch[:4])
    values = output.logits.double().softmax(1)[0].tolist()
    return dict(zip(trained.classes, values, strict=True))


@pytest.mark.parametrize("name", ["am_fbp", "audio", "video"])
def test_probabilities_are_the_models(
    make_checkpoint: MakeCheckpoint, clip: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = make_checkpoint(name)
    (prediction,) = predict(checkpoint, [clip], out=tmp_path)
    assert prediction.probabilities == pytest.approx(probabilities(checkpoint, clip), rel=1e-5)
    values = list(prediction.probabilities.values())
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1.0)
    picture = cv2.imread(str(prediction.picture))
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1000


def digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


def test_table_and_bad_clips(
    make_checkpoint: MakeCheckpoint,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faceless = write_media(tmp_path / "faceless.mp4", no_face(25), tone(1.0))
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / "clip.mp4"
    again.write_bytes(clip.read_bytes())
    checkpoint = make_checkpoint(head=torch.tensor([0.0, 0.0, 50.0, 0.0]))
    clips = [clip, faceless, tmp_path / "none.mp4", again]
    done = predict(checkpoint, clips, out=tmp_path / "out")
    assert [p.picture.name for p in done] == ["clip.png", f"clip-{digest(again)}.png"]
    assert done[0].probabilities == done[1].probabilities
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == str(clip)
    assert lines[1].split() == ["neutral", "100.0%", "#" * 30]
    assert lines[-1] == "2 of 4 clips predicted; errors: no face 1, no such file 1"
    assert f"{faceless}: cannot be used: no face" in printed.err


def test_errors(make_checkpoint: MakeCheckpoint, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the 2 clips could be used"):
        predict(make_checkpoint(), [tmp_path / "a", tmp_path / "b"], out=tmp_path)
    with pytest.raises(ValueError, match="at least one media file"):
        predict(make_checkpoint(), [], out=tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        predict(tmp_path / "none.safetensors", [clip], out=tmp_path)
    other = make_checkpoint(features=FeatureConfig(bins=20, face_size=16, detector="yunet:0123"))
    with pytest.raises(ValueError, match="detector must be yunet:0123"):
        predict(other, [clip], out=tmp_path)


def test_long_clip_is_the_mean_of_its_windows(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, frames: np.ndarray, hertz: float) -> Path:
        options = {"video_codec": "ffv1", "audio_codec": "pcm_s16le", "pixel_format": "gray"}
        return write_media(tmp_path / name, frames, tone(len(frames) / 25, hertz=hertz), **options)

    head = talking_head(100)
    parts = [write("a.mkv", head[:50], 500), write("b.mkv", head[50:], 500)]
    long = write("long.mkv", np.concatenate([head, no_face(50)]), 500)
    checkpoint = make_checkpoint(max_seconds=2.0)
    (prediction,) = predict(checkpoint, [long], out=tmp_path)
    assert prediction.skipped == {"no face": 1}
    assert "windows left out: 1 (no face)" in capsys.readouterr().out
    first, second = (probabilities(checkpoint, part) for part in parts)
    mean = {name: (first[name] + second[name]) / 2 for name in CLASSES}
    assert prediction.probabilities == pytest.approx(mean, abs=1e-5)


def test_attended_frames() -> None:
    weights = np.zeros(40)
    weights[[3, 17, 39]] = [0.5, 0.3, 0.2]
    chosen = attended_frames(weights, 40)
    assert len(chosen) == FACES
    assert {3, 17, 39} <= set(chosen)
    assert chosen == sorted(chosen)
    assert attended_frames(None, 4) == [0, 1, 2, 3]


def stretch(start: float, peak: int, seen: bool = True) -> Stretch:
    attention = np.full(20, 0.01)
    attention[peak] = 0.81
    faces = {i: np.full((32, 32), 200, np.uint8) for i in attended_frames(attention, 20)}
    return Stretch(
        start=start,
        duration=2.0,
        spectrogram=np.tile(np.linspace(-80, -20, 40, dtype=np.float32), (50, 1)),
        top_hertz=4000,
        faces=faces,
        seen=np.full(20, seen),
        audio_attention=np.roll(attention, 5),
        video_attention=attention,
    )


def blue(picture: np.ndarray) -> np.ndarray:
    """Columns in which the curve of the attention to faces stands higher than even."""
    b, r = (picture[..., i].astype(int) for i in (0, 2))
    mask = (b > 150) & (r < 120) & (b - r > 80)
    return mask.sum(axis=0)


def save(path: Path, *arguments) -> None:
    assert save_picture(path, partial(draw_attention, *arguments), dpi=110)


def test_picture_shows_the_peak_where_it_is(tmp_path: Path) -> None:
    places = []
    for peak in (2, 10, 17):
        path = tmp_path / f"{peak}.png"
        save(path, "clip", [("sad", 0.7), ("happy", 0.3)], [stretch(0.0, peak)])
        heights = blue(cv2.imread(str(path)))
        places.append(np.flatnonzero(heights > 0.8 * heights.max()).mean())
    # Equal steps on the time axis are equal steps in the picture.
    assert (places[1] - places[0]) / (places[2] - places[1]) == pytest.approx(8 / 7, rel=0.03)


def test_picture_of_several_windows_and_missed_faces(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    parts = [stretch(0.0, 3), stretch(4.0, 12, seen=False)]  # the window between was left out
    save(path, "clip", [("sad", 1.0)], parts)
    heights = blue(cv2.imread(str(path)))
    inside = np.flatnonzero(heights)
    gap = np.diff(inside).max()
    assert gap == pytest.approx((inside[-1] - inside[0]) / 3, rel=0.05)


def test_a_decoder_that_dies_costs_one_clip(
    make_checkpoint: MakeCheckpoint,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(predict_module, "_decoder", crashing.crashing_decoder)
    clips = [tmp_path / name for name in ("a.mp4", "crash.mp4", "b.mp4", "crash_late.mp4", "c.mp4")]
    for path in clips:
        path.write_bytes(clip.read_bytes())
    done = predict(make_checkpoint(max_seconds=1.0), clips, out=tmp_path / "out")
    assert [p.clip.stem for p in done] == ["a", "b", "c"]
    assert done[0].probabilities == done[1].probabilities == done[2].probabilities
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "3 of 5 clips predicted; errors: decoder crashed 2"
    assert printed.err.count("decoder crashed: the process ended with SIGSEGV; convert it") == 2


def test_metadata_that_is_no_text(
    make_checkpoint: MakeCheckpoint, clip: Path, tmp_path: Path
) -> None:
    content = clip.read_bytes()
    assert b"SoundHandler" in content
    spoilt, long = tmp_path / "spoilt.mp4", tmp_path / ("n" * 255)
    spoilt.write_bytes(content.replace(b"SoundHandler", b"Sound\xc1andler"))
    long.write_bytes(content)
    first, second, third = predict(make_checkpoint(), [spoilt, long, clip], out=tmp_path / "out")
    assert first.probabilities == second.probabilities == third.probabilities
    assert second.picture.is_file()


def alone(clip: Path, kind: str, path: Path) -> Path:
    """One stream of a clip, as it is."""
    with av.open(str(clip)) as given, av.open(str(path), "w") as container:
        stream = given.streams.best(kind)
        copy = container.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    return path


@pytest.mark.parametrize(("name", "other"), [("audio", "video"), ("video", "audio")])
def test_a_model_needs_the_streams_that_it_attends_to(
    make_checkpoint: MakeCheckpoint,
    clip: Path,
    tmp_path: Path,
    name: str,
    other: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = make_checkpoint(name)
    own, wrong = (alone(clip, kind, tmp_path / f"{kind}.mp4") for kind in (name, other))
    both, one = predict(checkpoint, [clip, own, wrong], out=tmp_path / "out")
    assert one.probabilities == pytest.approx(both.probabilities, abs=0.005)
    assert one.picture.is_file()
    assert f"no {name} stream: this model needs" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 1 clips"):
        predict(make_checkpoint("am_fbp"), [own], out=tmp_path / "out")


def test_a_model_that_listens_wants_no_face(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    faceless = write_media(tmp_path / "faceless.mp4", no_face(25), tone(1.0))
    silent = write_media(tmp_path / "silent.mp4", talking_head(25), np.zeros(16000, np.float32))
    assert len(predict(make_checkpoint("audio"), [faceless], out=tmp_path)) == 1
    assert len(predict(make_checkpoint("video"), [silent], out=tmp_path)) == 1


WORDS = (
    "Ba$$line",
    "from_$5_to_$6",
    r"$\frac{1$",
    "a_{b}^c %d {0}",
    "two\nlines\t\x1b[31m",
    "caf\udce9",
)


def test_names_and_labels_are_no_markup(
    make_checkpoint: MakeCheckpoint, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [tmp_path / f"{word}.mp4" for word in WORDS]
    for path in clips:
        path.write_bytes(clip.read_bytes())
    done = predict(make_checkpoint(classes=WORDS[:4]), clips, out=tmp_path / "out")
    assert [p.picture.name for p in done] == [f"{path.stem}.png" for path in clips]
    assert all(p.picture.stat().st_size > 10000 for p in done)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert r"two\nlines\t\x1b[31m.mp4" in printed.out
    assert r"caf\udce9.mp4" in printed.out


@pytest.mark.parametrize("setting", ["text.parse_math", "text.usetex"])
def test_labels_are_drawn_as_they_are(setting: str) -> None:
    import matplotlib
    from matplotlib.text import Text

    seen = []
    with matplotlib.rc_context({setting: True}):
        save_picture(Path(os.devnull), lambda: seen.append(Text(0, 0, "$x$")), dpi=10)
    assert not seen[0].get_parse_math()
    assert not seen[0].get_usetex()


def test_a_picture_that_fails_stops_nothing(
    make_checkpoint: MakeCheckpoint,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "clip.png").mkdir()  # in the way
    (prediction,) = predict(make_checkpoint(), [clip], out=tmp_path)
    assert prediction.picture is None
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
    printed = capsys.readouterr()
    assert "clip.png: no picture: IsADirectoryError" in printed.err
    assert "attention:" not in printed.out


def test_no_picture_has_the_name_of_another(tmp_path: Path) -> None:
    places = [
        "a/clip.mp4",
        "b/clip.mp4",
        "b/CLIP.mp4",
        "clip.mov",
        "a/clip.mp4",
        "ö" * 120 + ".mp4",
    ]
    places += [f"c/clip-{digest(tmp_path / 'b/clip.mp4')}.mp4", "n" * 254, "ö" * 120 + "x.mp4"]
    clips = [tmp_path / place for place in places]
    names = [path.name for path in _picture_paths(clips, tmp_path)]
    own = [0, 4, 6]  # two ways to say the same file, and what a made-up name must not be
    assert [i for i, clip in enumerate(clips) if names[i] == f"{clip.stem}.png"] == own
    assert len({name.lower() for name in names}) == len(clips) - 1
    assert max(len(os.fsencode(name)) for name in names) < 255
    assert names == [path.name for path in _picture_paths(clips, tmp_path)]
