"""The plan (speakers, splits, labels, conditions) and the files of a corpus."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from avemo.synth import synthesize
from avemo.synth.clip import ClipPlan
from avemo.synth.corpus import SPLITS, Parameters, apportion, plan
from avemo.synth.degrade import NOISES
from avemo.synth.emotions import CLASSES


def draw(clips: int, classes: int = 4, seed: int = 0, noise: float = 1.0) -> list[ClipPlan]:
    return plan(Parameters(clips, classes, seed, noise, 160, 25, 16000))


@pytest.mark.parametrize(
    ("clips", "classes", "seed"), [(12, 4, 0), (21, 7, 1), (97, 4, 2), (301, 7, 3), (480, 4, 4)]
)
def test_speakers_are_in_one_split_and_labels_are_balanced(
    clips: int, classes: int, seed: int
) -> None:
    plans = draw(clips, classes, seed)
    assert len(plans) == clips
    assert len({p.path for p in plans}) == clips
    splits: dict[str, set[str]] = {}
    for p in plans:
        splits.setdefault(p.speaker, set()).add(p.split)
    assert all(len(found) == 1 for found in splits.values())
    for split in SPLITS:
        counts = Counter(p.label for p in plans if p.split == split)
        assert set(counts) == set(CLASSES[classes])
        assert max(counts.values()) - min(counts.values()) <= 1
    for speaker in splits:
        counts = Counter(p.label for p in plans if p.speaker == speaker)
        assert max(counts.values()) - min(counts[label] for label in CLASSES[classes]) <= 1


def test_splits_have_their_shares() -> None:
    counts = Counter(p.split for p in draw(480))
    assert counts == {"train": 288, "val": 72, "test": 120}
    assert apportion(12, SPLITS, 4) == {"train": 4, "val": 4, "test": 4}
    assert sum(apportion(97, SPLITS, 4).values()) == 97


def test_a_speaker_keeps_face_and_voice_and_clips_differ() -> None:
    plans = draw(96)
    by_speaker: dict[str, list[ClipPlan]] = {}
    for p in plans:
        by_speaker.setdefault(p.speaker, []).append(p)
    for own in by_speaker.values():
        assert all(
            p.identity == own[0].identity and p.speaker_voice == own[0].speaker_voice for p in own
        )
        assert len({p.scene for p in own}) == len(own)
    assert len({p[0].speaker_voice.pitch for p in by_speaker.values()}) == len(by_speaker)


def test_emphasis_lies_inside_the_clip_and_drives_both_modalities() -> None:
    for p in draw(200, 7, noise=0):
        emphasis = p.script.emphasis
        assert 0 < emphasis.start < emphasis.apex < emphasis.end < p.script.duration
        times = np.array([0.0, emphasis.start, emphasis.apex, emphasis.end, p.script.duration])
        np.testing.assert_allclose(emphasis.envelope(times), [0, 0, 1, 0, 0], atol=1e-12)
        assert 1.6 <= p.script.duration <= 2.6
        assert (p.units == {}) == (p.label == "neutral")


def test_degradations_hit_one_modality_both_or_none_as_often_as_noise_says() -> None:
    for noise, expected in ((0.0, 0.0), (0.5, 0.16), (1.0, 0.32)):
        plans = draw(600, noise=noise)
        heard = np.array([p.audio.kind in NOISES for p in plans])
        seen = np.array([p.video.degraded for p in plans])
        tolerance = 3.5 * np.sqrt(expected * (1 - expected) / len(plans))
        assert abs(heard.mean() - expected) <= tolerance
        assert abs(seen.mean() - expected) <= tolerance
        assert abs((heard & seen).mean() - expected**2) <= tolerance
    mild, harsh = (
        np.mean([p.audio.snr_db for p in draw(200, noise=n) if p.audio.kind in NOISES])
        for n in (0.5, 1.0)
    )
    assert harsh < mild - 5


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "corpus"
    manifest = synthesize(out, clips=12, seed=5, workers=1)
    assert manifest == out / "manifest.csv"
    return out


def test_files_do_not_depend_on_the_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "again", clips=12, seed=5, workers=2)
    assert digests(tmp_path / "again") == digests(corpus)


def test_seed_matters() -> None:
    assert draw(12, seed=1)[0] != draw(12, seed=2)[0]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_manifest_names_media_files_with_the_promised_formats(corpus: Path) -> None:
    manifest, conditions = rows(corpus / "manifest.csv"), rows(corpus / "conditions.csv")
    assert list(manifest[0]) == ["path", "label", "speaker", "split"]
    assert [r["path"] for r in manifest] == [r["path"] for r in conditions]
    assert not list(corpus.rglob("*.part"))
    for clip, condition in zip(manifest, conditions, strict=True):
        with av.open(str(corpus / clip["path"])) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (video.width, video.height, video.average_rate) == (160, 160, 25)
            assert (audio.codec_context.name, audio.sample_rate, audio.channels) == (
                "aac",
                16000,
                1,
            )
            frames, samples = 0, 0
            for frame in container.decode(video, audio):
                if isinstance(frame, av.VideoFrame):
                    frames += 1
                else:
                    samples += frame.samples
        duration = float(condition["duration_s"])
        assert frames == round(duration * 25)
        assert 0 <= samples - duration * 16000 <= 1024  # AAC fills its last block


def test_readme_says_how_it_was_made(corpus: Path) -> None:
    text = (corpus / "README.md").read_text(encoding="utf-8")
    assert "avemo synth --out DIR --clips 12 --classes 4 --seed 5 --noise 1.0" in text
    assert "synthetic" in text
    assert "Banse & Scherer" in text


def test_a_finished_corpus_is_left_alone(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in corpus.rglob("*")}
    synthesize(corpus, clips=12, seed=5, workers=1)
    assert "already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in corpus.rglob("*")} == before


def test_a_broken_off_run_is_taken_up_again(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avemo.synth import corpus as module

    write, written = module.write_clip, []

    def break_at_three(*args: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(args)
        write(*args)

    monkeypatch.setattr(module, "write_clip", break_at_three)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "c", clips=12, seed=5, workers=1)
    assert not (tmp_path / "c" / "manifest.csv").exists()
    written.clear()
    monkeypatch.setattr(module, "write_clip", lambda *args: (written.append(args), write(*args)))
    synthesize(tmp_path / "c", clips=12, seed=5, workers=1)
    assert len(written) == 9
    assert digests(tmp_path / "c") == digests(corpus)


def test_other_parameters_or_other_files_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileExistsError, match=r"seed is 5, asked for 6.*noise is 1.0, asked for 0.5"
    ):
        synthesize(corpus, clips=12, seed=6, noise=0.5)
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="no corpus"):
        synthesize(tmp_path, clips=12)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    assert json.loads((corpus / "parameters.json").read_text())["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 11}, r"clips=11: expected at least 12"),
        ({"clips": 20, "classes": 7}, r"clips=20: expected at least 21"),
        ({"classes": 5}, r"classes=5: expected one of \[4, 7\]"),
        ({"noise": -0.1}, r"noise=-0.1: expected a finite number, 0 or greater"),
        ({"noise": float("nan")}, r"noise=nan"),
        ({"seed": -1}, r"seed=-1"),
        ({"workers": 0}, r"workers=0: expected at least 1"),
        ({"size": 161}, r"size=161: expected an even number"),
        ({"fps": 0}, r"fps=0"),
        ({"sample_rate": 44100}, r"sample_rate=44100: expected one of"),
    ],
)
def test_bad_arguments_name_themselves(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
