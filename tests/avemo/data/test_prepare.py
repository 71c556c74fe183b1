"""A corpus with every kind of bad clip, interrupted and not."""

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avemo.data import prepare as prepare_module
from avemo.data.cache import CacheError, ClipCache
from avemo.data.features import FeatureConfig, extract
from avemo.data.prepare import PrepareError, prepare
from avemo.data.reasons import category_of
from avemo.storage import FolderInUseError, WriteError
from tests.avemo.data import crashing
from tests.avemo.data.media_files import no_face, talking_head, tone, write_clip, write_media
from tests.avemo.data.yunet import CELL, write_yunet
from tests.avemo.writers import one_writer_elsewhere

SHARD_ROWS = 5
GOOD = 9
LABELS = ("angry", "happy", "sad")
SETTINGS = {"face_size": 32, "bins": 40}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good clips, each with a tone of its own, and bad ones in between."""
    root = tmp_path_factory.mktemp("corpus")
    outside = tmp_path_factory.mktemp("outside")
    good = [write_clip(root / f"good{i}.mp4", hertz=200 * (i + 1), first=i) for i in range(GOOD)]
    write_media(root / "silent.mp4", talking_head(25), np.zeros(16000, np.float32))
    write_media(root / "faceless.mp4", no_face(25), tone(1.0))
    (root / "cut.mp4").write_bytes(good[0].read_bytes()[:20000])
    (root / "text.mp4").write_text("this is no film")
    (root / "empty.mp4").touch()
    (root / "folder.mp4").mkdir()
    shutil.copy(good[0], outside / "secret.mp4")
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    rows = []
    for name, reason in _bad(outside):
        number = len(rows)
        if number % 2 == 0 and number // 2 < GOOD:
            rows.append(_row(number // 2))
        rows.append((name, "happy", "s9", "train", reason))
    used = {row[0] for row in rows}
    rows += [_row(i) for i in range(GOOD) if f"good{i}.mp4" not in used]
    rows.append(("good1.mp4", "happy", "s9", "train", "duplicate"))
    rows.append(("label.mp4", "", "s9", "train", "no label"))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split", "expected"), *rows])
    return root


def _bad(outside: Path) -> list[tuple[str, str]]:
    return [
        ("silent.mp4", "silent audio"),
        ("faceless.mp4", "no face"),
        ("cut.mp4", "truncated"),
        ("text.mp4", "not a media file"),
        ("empty.mp4", "empty file"),
        ("folder.mp4", "not a regular file"),
        ("none.mp4", "no such file"),
        ("link.mp4", "path outside of the root"),
        (str(outside / "secret.mp4"), "path outside of the root"),
        (f"../{outside.name}/secret.mp4", "path outside of the root"),
    ]


def _row(i: int) -> tuple[str, ...]:
    split = ("train", "train", "val", "test")[i % 4]
    return (f"good{i}.mp4", LABELS[i % 3], f"s{i % 4}", split, "")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_SHARD_ROWS", SHARD_ROWS)


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache as one run with two workers makes it."""
    out = tmp_path_factory.mktemp("unbroken") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_SHARD_ROWS", SHARD_ROWS)
        report = prepare("manifest", corpus, out=out, workers=2, **SETTINGS)
    assert report.done == GOOD
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_bad_clip_has_its_reason(corpus: Path, unbroken: Path) -> None:
    expected = [
        (row["path"], row["expected"])
        for row in read_rows(corpus / "manifest.csv")
        if row["expected"]
    ]
    errors = read_rows(unbroken / "errors.csv")
    assert [(e["path"], e["reason"].split(":")[0]) for e in errors] == expected


def test_labels_and_clips_belong_together(corpus: Path, unbroken: Path) -> None:
    cache = ClipCache(unbroken)
    assert cache.classes == LABELS
    assert len(cache) == GOOD
    assert len({info.shard for info in cache.clips}) >= 3
    rows = {row["path"]: row for row in read_rows(corpus / "manifest.csv") if not row["expected"]}
    for index, info in enumerate(cache.clips):
        number = int(info.path.removeprefix("good").removesuffix(".mp4"))
        assert cache.classes[cache.label(index)] == rows[info.path]["label"] == LABELS[number % 3]
        assert (info.speaker, info.split) == (f"s{number % 4}", _row(number)[3])
        loudest = cache[index].audio.astype(float).mean(axis=0).argmax()
        assert loudest == 200 * (number + 1) // 100  # the tone says which file the arrays are of


def test_cache_holds_what_extract_gives(corpus: Path, unbroken: Path) -> None:
    cache = ClipCache(unbroken)
    for index in (0, len(cache) - 1):
        direct = extract(corpus / cache.clips[index].path, FeatureConfig(**SETTINGS))
        for stored, made in zip(cache[index], direct, strict=True):
            np.testing.assert_array_equal(stored, made)


def test_number_of_workers_changes_nothing(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    prepare("manifest", corpus, out=tmp_path / "cache", workers=1, **SETTINGS)
    assert contents(tmp_path / "cache") == contents(unbroken)


def test_kill_and_resume(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "corpus", tmp_path / "cache"
    shutil.copytree(corpus, root, symlinks=True)
    code = (
        "import sys; from pathlib import Path; from avemo.data import prepare as p\n"
        f"p._SHARD_ROWS = {SHARD_ROWS}\n"
        "p.prepare('manifest', Path(sys.argv[1]), out=Path(sys.argv[2]), workers=1, face_size=32, bins=40)"
    )
    command = [sys.executable, "-c", code, str(root), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list(out.glob("parts/*1.safetensors")) + list(out.glob("shard-00000.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "index.json").exists()
    time.sleep(0.5)  # the orphaned worker may finish the clip in its hands
    # What is settled must not be looked at again: without its file it would fail.
    rows = [row["path"] for row in read_rows(root / "manifest.csv")]
    settled = _settled(out, len(rows))
    good = [number for number in settled if rows[number].startswith("good")]
    assert 0 < len(good) < GOOD
    for number in good:
        (root / rows[number]).unlink(missing_ok=True)
    report = prepare("manifest", root, out=out, workers=2, **SETTINGS)
    assert report.resumed >= len(settled)
    assert contents(out) == contents(unbroken)


def _settled(out: Path, count: int) -> list[int]:
    parts = [*out.glob("parts/0*.safetensors"), *out.glob("parts/0*.error")]
    shards = [int(p.stem.removeprefix("shard-")) for p in out.glob("parts/shard-*.json")]
    packed = [row for s in shards for row in range(SHARD_ROWS * s, SHARD_ROWS * (s + 1))]
    return sorted({*(int(p.stem) for p in parts), *packed} & set(range(count)))


def test_finished_cache_is_left_alone(
    corpus: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(unbroken)
    report = prepare("manifest", corpus, out=unbroken, **SETTINGS)
    assert report.done == GOOD
    assert report.errors["path outside of the root"] == 3
    assert contents(unbroken) == before
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"prepared {GOOD} clips in ")
    assert "path outside of the root 3" in line


def test_other_settings_are_named(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bins is 40 there and 20 now"):
        prepare("manifest", corpus, out=unbroken, **{**SETTINGS, "bins": 20})
    with pytest.raises(ValueError, match="face_size is 32 there and 64 now"):
        prepare("manifest", corpus, out=unbroken, bins=40)
    other = tmp_path / "manifest.csv"
    other.write_text((corpus / "manifest.csv").read_text() + "more.mp4,sad,s1,train,\n")
    with pytest.raises(ValueError, match="clips is"):
        prepare(str(other), corpus, out=unbroken, **SETTINGS)


def test_yunet_finds_the_faces_and_the_cache_says_so(tmp_path: Path) -> None:
    frames = no_face(25) // 4  # no cascade sees anything there
    frames[:, CELL : 2 * CELL, 2 * CELL : 3 * CELL] = 255
    write_media(tmp_path / "a.mp4", frames, tone(1.0))
    (tmp_path / "manifest.csv").write_text("path,label,split\na.mp4,sad,train\n")
    model = write_yunet(tmp_path / "model.onnx")
    with pytest.raises(PrepareError):
        prepare("manifest", tmp_path, out=tmp_path / "haar", workers=1, **SETTINGS)
    out = tmp_path / "yunet"
    prepare("manifest", tmp_path, out=out, workers=1, face_detector=model, **SETTINGS)
    cache = ClipCache(out)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert cache.features.detector == f"yunet:{digest[:16]}"
    assert cache[0].valid.all()
    # The box is twice as wide as what is bright, and a tenth and the margins more.
    bright = cache[0].video[len(frames) // 4] > 200
    assert bright.mean() == pytest.approx(1 / (2 * 1.1 * 1.1) ** 2, rel=0.2)
    with pytest.raises(ValueError, match=r"detector is 'yunet:.*' there and 'haar' now"):
        prepare("manifest", tmp_path, out=out, workers=1, **SETTINGS)


def test_bad_arguments(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    with pytest.raises(ValueError, match="bins must divide 200, got 33"):
        prepare("manifest", corpus, out=out, bins=33)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        prepare("manifest", corpus, out=out, workers=0)
    with pytest.raises(FileNotFoundError, match="manifest must be a CSV file"):
        prepare(str(tmp_path / "none.csv"), corpus, out=out)
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        prepare("manifest", tmp_path / "none", out=out)
    with pytest.raises(ValueError, match="YuNet"):
        prepare("manifest", corpus, out=out, face_detector=tmp_path / "none.onnx")
    assert not out.exists()


def test_all_clips_fail(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,label,split\na.mp4,sad,train\nb.mp4,,train\n")
    with pytest.raises(PrepareError, match="none of the 2 clips could be used"):
        prepare("manifest", tmp_path, out=tmp_path / "cache", workers=1)
    reasons = [category_of(row["reason"]) for row in read_rows(tmp_path / "cache" / "errors.csv")]
    assert reasons == ["no such file", "no label"]
    write_clip(tmp_path / "a.mp4")  # put right, the next try starts afresh
    assert prepare("manifest", tmp_path, out=tmp_path / "cache", workers=1).done == 1


def test_crashing_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_module, "_worker_setup", crashing.crashing_clips)
    rows = ["path,label,speaker,split"]
    for name in ("a", "crash", "b"):
        write_clip(tmp_path / f"{name}.mp4")
        rows.append(
            f"{name}.mp4,{'sad' if name == 'a' else 'happy'},s,{'test' if name == 'a' else 'train'}"
        )
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    report = prepare("manifest", tmp_path, out=tmp_path / "cache", workers=1)
    assert report.errors == {"decoder crashed": 1}
    assert [c.label for c in ClipCache(tmp_path / "cache").clips] == ["sad", "happy"]
    assert "speakers in more than one split: s" in capsys.readouterr().err


def _anew(corpus: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Prepares into a folder that has a cache; gives what it warns of."""
    assert prepare("manifest", corpus, out=out, workers=1, **SETTINGS).done == GOOD
    return capsys.readouterr().err


def test_what_is_damaged_is_prepared_anew_and_nothing_else(
    corpus: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a finished cache and in one that is not; the files of all other clips are gone."""
    root, out = tmp_path / "corpus", tmp_path / "cache"
    shutil.copytree(corpus, root, symlinks=True)
    shutil.copytree(unbroken, out)
    whole = contents(out)
    shard = out / "shard-00001.safetensors"
    clip, *others = [c for c in ClipCache(out).clips if c.shard == shard.name]
    for path in root.glob("good*.mp4"):
        if path.name != clip.path:
            path.unlink()
    assert others
    content = bytearray(whole[shard.name])
    first = 8 + int.from_bytes(content[:8], "little")
    content[
        content.index(
            ClipCache(unbroken)[ClipCache(unbroken).clips.index(clip)].audio.tobytes(), first
        )
    ] ^= 1
    shard.write_bytes(content)
    warned = _anew(root, out, capsys)
    assert "warning: 1 of the 5 clips of shard-00001.safetensors are prepared anew" in warned
    assert contents(out) == whole
    with (out / "errors.csv").open("rb+") as file:
        file.truncate(
            file.seek(0, os.SEEK_END) // 2
        )  # an error that is not known is looked for again
    assert "prepared anew" in _anew(root, out, capsys)
    assert contents(out) == whole


def test_a_damaged_index_costs_all_clips(
    corpus: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    shutil.copytree(unbroken, out)
    whole = contents(out)
    (out / "index.json").write_bytes(whole["index.json"][:100])
    assert "warning: all clips are prepared anew: " in _anew(corpus, out, capsys)
    assert contents(out) == whole
    (out / "settings.json").write_text("{")
    with pytest.raises(CacheError, match=r"settings.json is damaged \(.*; choose another folder"):
        _anew(corpus, out, capsys)


def test_a_file_that_has_changed_is_prepared_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its content, or since another root has another file of its name."""
    roots = tmp_path / "a", tmp_path / "b"
    for number, root in enumerate(roots):
        root.mkdir()
        write_clip(root / "x.mp4", hertz=400 * (number + 1), first=number)
    manifest, out = tmp_path / "m.csv", tmp_path / "cache"
    manifest.write_text("path,label,split\nx.mp4,happy,train\ny.mp4,happy,train\n")
    for root in roots:
        assert prepare(str(manifest), root, out=out, workers=1, **SETTINGS).done == 1
        direct = extract(root / "x.mp4", FeatureConfig(**SETTINGS))
        np.testing.assert_array_equal(ClipCache(out)[0].audio, direct.audio)
    shutil.copy(roots[0] / "x.mp4", roots[1] / "y.mp4")  # what was missing is there now
    capsys.readouterr()
    assert prepare(str(manifest), roots[1], out=out, workers=1, **SETTINGS).done == 2
    assert "warning: 1 of the 2 clips" in capsys.readouterr().err
    assert prepare(str(manifest), roots[1], out=out, workers=1, **SETTINGS).resumed == 2
    assert not capsys.readouterr().err


def test_a_start_that_failed_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ends the run in one line, and its first settings bind nobody."""
    write_clip(tmp_path / "x.mp4")
    manifest, out = tmp_path / "m.csv", tmp_path / "cache"
    manifest.write_text("path,label,split\nx.mp4,happy,train\n")
    monkeypatch.setattr(prepare_module, "_worker_setup", crashing.full_disk)
    with pytest.raises(WriteError, match=r"cannot write .*000000000.safetensors: No space left"):
        prepare(str(manifest), tmp_path, out=out, workers=1, bins=20)
    monkeypatch.undo()
    assert prepare(str(manifest), tmp_path, out=out, workers=1, bins=40).done == 1


def test_a_second_prepare_into_the_same_folder_is_refused(corpus: Path, unbroken: Path) -> None:
    with one_writer_elsewhere(unbroken), pytest.raises(FolderInUseError, match="avemo prepare"):
        prepare("manifest", corpus, out=unbroken, **SETTINGS)
