"""Prediction: numbers as the model gives them for what the file holds, and pictures that show it."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avemo.data.features import Clip, FeatureConfig, extract
from avemo.data.inputs import collate, to_sample
from avemo.data.media import BOTH
from avemo.evaluation import decoding
from avemo.evaluation.answers import Asker
from avemo.evaluation.predict import _names, predict
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
    assert prediction.picture == tmp_path / "clip.svg"


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
    assert [p.picture.name for p in done] == ["clip.svg", f"clip-{digest(again)}.svg"]
    assert done[0].probabilities == done[1].probabilities
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == str(clip)
    assert lines[1].split() == ["neutral", "100.0%", "#" * 30]
    assert lines[-1] == "2 of 4 clips predicted; errors: no face 1, no such file 1"
    assert f"{faceless}: cannot be used: no face" in printed.err


def test_errors(make_checkpoint: MakeCheckpoint, clip: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 clips could be used"):
        predict(make_checkpoint(), [empty, tmp_path / "b"], out=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*a \(nor any of 1 others\)"):
        predict(make_checkpoint(), [tmp_path / "a", tmp_path / "b"], out=tmp_path)
    with pytest.raises(ValueError, match="at least one media file"):
        predict(make_checkpoint(), [], out=tmp_path)
    for given in ({"seconds": 3.0}, {"seconds": -1.0, "camera": "0"}):
        with pytest.raises(ValueError, match="seconds must be above 0, and needs a camera, got"):
            predict(make_checkpoint(), [] if "camera" in given else ["a"], **given)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        predict(tmp_path / "none.safetensors", [clip], out=tmp_path)
    other = make_checkpoint(features=FeatureConfig(bins=20, face_size=16, detector="yunet:0123"))
    with pytest.raises(ValueError, match="face_detector must be yunet:0123"):
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


def test_a_decoder_that_dies_costs_one_clip(
    make_checkpoint: MakeCheckpoint,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(decoding, "decoder", crashing.crashing_decoder)
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
    assert [p.picture.name for p in done] == [f"{path.stem}.svg" for path in clips]
    assert all(p.picture.stat().st_size > 10000 for p in done)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert r"two\nlines\t\x1b[31m.mp4" in printed.out
    assert r"caf\udce9.mp4" in printed.out


def test_a_picture_that_fails_stops_nothing(
    make_checkpoint: MakeCheckpoint,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "clip.svg").mkdir()  # in the way
    (prediction,) = predict(make_checkpoint(), [clip], out=tmp_path)
    assert prediction.picture is None
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
    printed = capsys.readouterr()
    assert "clip.svg: no picture: WriteError" in printed.err
    assert "picture:" not in printed.out


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
    names = _names(clips)
    own = [0, 4, 6]  # two ways to say the same file, and what a made-up name must not be
    assert [i for i, clip in enumerate(clips) if names[i] == clip.stem] == own
    assert len({name.lower() for name in names}) == len(clips) - 1
    assert max(len(os.fsencode(name)) for name in names) < 255
    assert names == _names(clips)


def test_windows_and_what_is_written_of_them(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    clip = write_media(tmp_path / "clip.mp4", talking_head(100), tone(4.0))
    checkpoint = make_checkpoint(max_seconds=3.0)
    out = tmp_path / "out"
    (prediction,) = predict(checkpoint, [clip], out=out, window=2.0, hop=0.5, pictures="png")
    assert sorted(p.name for p in out.iterdir()) == [
        "clip.TextGrid",
        "clip.png",
        "clip.srt",
        "clip.vtt",
    ]
    assert prediction.files == tuple(out / f"clip{s}" for s in (".srt", ".vtt", ".TextGrid"))
    assert prediction.line[0].start == 0
    assert prediction.line[-1].end == pytest.approx(4.0, abs=0.09)
    assert len({m.start for m in prediction.line}) == len(prediction.line) >= 8
    # The clip as a whole is the mean of the windows, and what they say is what they say alone.
    trained = checkpoints.load(checkpoint)
    pieces = list(
        decoding.decoder(trained.features, None, decoding.Windows(2.0, 0.5), BOTH)((0, clip))
    )
    rows = []
    for piece in pieces[:-1]:
        with torch.no_grad():
            output = trained.model(*collate([to_sample(piece.clip, trained.features)])[:4])
        rows.append(output.logits[0].double().softmax(0).numpy())
    assert len(rows) == 5
    mean = dict(zip(CLASSES, np.mean(rows, axis=0), strict=True))
    assert prediction.probabilities == pytest.approx(mean, rel=1e-9)


def test_the_same_bits_whatever_else_is_asked(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """In company, with pictures and without, in one process or several."""
    clips = [
        write_media(tmp_path / f"{frames}.mp4", talking_head(frames), tone(frames / 25))
        for frames in (25, 57, 42, 77)
    ]
    checkpoint = make_checkpoint(max_seconds=2.0)
    alone = [predict(checkpoint, [c], out=tmp_path, pictures="none", workers=1)[0] for c in clips]
    together = predict(checkpoint, clips, out=tmp_path, workers=3)
    for one, other in zip(alone, together, strict=True):
        assert one.clip == other.clip, "in the order that they were given in"
        assert one.probabilities == other.probabilities
    assert [p.picture is not None for p in (*alone, *together)] == [False] * 4 + [True] * 4


def test_what_hiding_costs_is_what_the_model_says(make_checkpoint: MakeCheckpoint) -> None:
    """Parts are as in a clip that lacks the stream, and nothing else is changed."""
    trained = checkpoints.load(make_checkpoint())
    draw = np.random.default_rng(0)
    clip = Clip(
        draw.integers(0, 256, (203, 20), np.uint8),
        draw.integers(0, 256, (25, 16, 16), np.uint8),
        np.ones(25, bool),
    )
    answer = Asker(trained.model, trained.features, BOTH)(clip, hide=True)
    sample = to_sample(clip, trained.features)
    for stream, part in [("audio", None), ("audio", 1), ("video", None), ("video", 3)]:
        edges = {"audio": [0, 51, 102, 152, 203], "video": [0, 6, 12, 19, 25]}[stream]
        span = slice(None) if part is None else slice(edges[part], edges[part + 1])
        audio, video = sample.audio.copy(), sample.video.copy()
        if stream == "audio":
            audio[:, span] = 0
        else:
            video[span] = 0
        with torch.no_grad():
            batch = collate([sample._replace(audio=audio, video=video)])
            expected = trained.model(*batch[:4]).logits[0].double().softmax(0).numpy()
        hidden = answer.hidden[stream]
        found = hidden.whole if part is None else hidden.parts[part]
        assert hidden.parts.shape == (4, 4)
        assert np.allclose(found, expected, rtol=1e-5)


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "avemo", "predict", *map(str, arguments)]
    return subprocess.run(words, input=stdin, capture_output=True, check=False)


def test_for_programs_and_by_a_list(
    make_checkpoint: MakeCheckpoint, clip: Path, tmp_path: Path
) -> None:
    broken = tmp_path / 'not, "a" film.mp4'
    broken.write_bytes(b"nothing")
    checkpoint, out = make_checkpoint(), tmp_path / "out"
    listed = f"{clip}\n{broken}\n".encode()
    done = run(checkpoint, "-", "--format", "csv", "--out", out, stdin=listed)
    assert done.returncode == 1, "one has failed"
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [row["path"] for row in rows] == [str(clip), str(broken)]
    assert rows[0]["picture"] == str(out / "clip.svg")
    assert rows[1]["error"].startswith("not a media file")
    assert b"1 of 2 clips predicted; errors: not a media file 1" in done.stderr
    jsonl = run(checkpoint, clip, "--format", "jsonl", "--pictures", "none", "--out", out)
    assert jsonl.returncode == 0
    assert jsonl.stderr == b""
    (line,) = map(json.loads, jsonl.stdout.splitlines())
    assert line["probabilities"][line["emotion"]] == max(line["probabilities"].values())
    assert [float(rows[0][name]) for name in CLASSES] == [line["probabilities"][n] for n in CLASSES]
    assert line["error"] is None
    assert line["picture"] is None
    table = run(checkpoint, broken, "--out", out)
    assert table.returncode == 2
    assert table.stderr.endswith(b"avemo: error: none of the 1 clips could be used\n")


@pytest.mark.parametrize(
    ("arguments", "also"),
    [
        ([], ["numpy"]),
        (["none.safetensors", "none.mp4"], ["numpy"]),
        (["none.safetensors", __file__], []),  # for the clip, workers have begun
    ],
)
def test_what_is_missing_is_told_before_anything_heavy_is_imported(
    arguments: list[str], also: list[str]
) -> None:
    code = (
        "import sys; from avemo.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'lightning', 'av', 'cv2', 'matplotlib', 'scipy', 'PIL', 'fbp_kernels'}\n"
        f"heavy |= set({also})\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sys.exit(status)"
    )
    words = [sys.executable, "-c", code, "predict", *arguments]
    before = os.times()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    after = os.times()  # of the processor, whatever else the machine does
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert after.children_user - before.children_user < 1


def test_workers_begin_before_anything_heavy_is_imported() -> None:
    """So that a clip is decoded while PyTorch is imported; there must be a clip to begin with."""
    code = (
        "import sys\n"
        "from avemo.evaluation import predict\n"
        "predict.warm_up = lambda: print('begun', 'numpy' in sys.modules)\n"
        "predict.predict('no such model', [sys.argv[1]])"
    )
    for clip, begun in ((__file__, "begun False\n"), ("no such clip", "")):
        words = [sys.executable, "-c", code, clip]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.stdout == begun, done.stderr


def test_a_worker_that_reads_imports_no_more_than_it_needs(clip: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from avemo.data.features import FeatureConfig\n"
        "from avemo.evaluation.decoding import Windows, decoder\n"
        "parts = list(decoder(FeatureConfig(), None, Windows(30.0), ())((0, Path(sys.argv[1]))))\n"
        "assert parts[0].clip.valid.any() and len(parts) == 2\n"
        "heavy = {'torch', 'scipy', 'librosa', 'matplotlib', 'PIL', 'fbp_kernels'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, str(clip)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
