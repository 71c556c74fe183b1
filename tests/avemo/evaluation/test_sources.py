"""What is meant by names of files, folders, patterns and a list."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from avemo.evaluation.sources import find_clips


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.MOV", "notes.txt", "deep/er/c.wav", "x[1].mp4", "x1.mp4", ".mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def listed(content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return [os.fspath(p) for p in find_clips(["-"])]


def found(*names: str) -> list[str]:
    return [os.fspath(p) for p in find_clips(names)]


def test_files_folders_and_patterns() -> None:
    assert found("notes.txt") == ["notes.txt"], "a file that is named may have any suffix"
    assert found(".") == ["a.MOV", "b.mp4", "deep/er/c.wav", "x1.mp4", "x[1].mp4"]
    assert found("*.mp4") == ["b.mp4", "x1.mp4", "x[1].mp4"]
    assert found("**/*.wav") == ["deep/er/c.wav"]
    assert found("x[1].mp4") == ["x[1].mp4"], "a file of that name comes before the pattern"
    assert found("b.mp4", "*.mp4", "b.mp4") == ["b.mp4", "x1.mp4", "x[1].mp4"]
    assert found("b.mp4", "gone.mp4") == ["b.mp4", "gone.mp4"], "told later, beside the others"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["gone.mp4"], "^no such file: gone.mp4$"),
        (["gone.mp4", "too"], r"^no such file: gone.mp4 \(nor any of 1 others\)$"),
        (["*.flv"], r"^no media file in the pattern \*.flv$"),
        (["empty"], "^no media file in the folder empty$"),
    ],
)
def test_nothing_there(names: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_clips(names)


def test_lists_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(b"b.mp4\r\n\ndeep\n-\n", monkeypatch) == ["b.mp4", "deep/er/c.wav"]
    odd = "li\nne.mp4"
    Path(odd).write_bytes(b"x")
    assert listed(b"li\nne.mp4\0b.mp4\0", monkeypatch) == [odd, "b.mp4"]
    raw = os.fsencode("caf\udce9.mp4")
    Path(os.fsdecode(raw)).write_bytes(b"x")
    assert listed(raw + b"\n", monkeypatch) == ["caf\udce9.mp4"]
    with pytest.raises(FileNotFoundError, match="no name of a media file on standard input"):
        listed(b"\n-\n", monkeypatch)


def test_an_empty_name_is_not_the_folder_where_one_is() -> None:
    with pytest.raises(ValueError, match=r"clips must be names of files, .* got an empty one"):
        found("x1.mp4", "")
