"""Rows are checked one by one; only a manifest that is none at all is an error."""

import csv
import io
import os
from pathlib import Path

import pytest

from avemo.data.corpora.listing import checked, locate, shared_speakers
from avemo.data.manifest import read_manifest
from avemo.data.media import WHOLE, Cut
from avemo.data.reasons import category_of, reason


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_and_their_faults(tmp_path: Path) -> None:
    text = "\ufeffspeaker,split,label,path,take\n" + "\n".join(
        [
            's1,train,happy,"a, b/ä.mp4",1',
            "s1,train,,b.mp4,1",
            "s1,dev,happy,c.mp4,1",
            "s1,train,happy,,1",
            's1,test,sad,"a, b/ä.mp4",1',
            "s1,test,sad,/etc/passwd,1",
            "s1,test,sad,../x.mp4,1",
            "s1,test,sad,a/../../x.mp4,1",
            "s2,val,sad,C:\\x.mp4,1",
            "s2,val",
            ",val,sad,d.mp4,1",
        ]
    )
    rows = checked(read_manifest(write(tmp_path / "m.csv", text)).rows, tmp_path)
    faults = [row.fault for row in rows]
    assert faults[2].startswith("unknown split: 'dev'; write train, val or test")
    assert faults[4].startswith("duplicate: also in row 1;")
    assert [category_of(fault) for fault in faults] == [
        "",
        "no label",
        "unknown split",
        "no path",
        "duplicate",
        "path outside of the root",
        "path outside of the root",
        "path outside of the root",
        "path outside of the root",
        "no path",
        "",
    ]
    assert rows[0].path == "a, b/ä.mp4"
    assert rows[10].speaker == ""


def test_speakers_in_two_splits(tmp_path: Path) -> None:
    text = (
        "path,label,speaker,split\na,x,s1,train\nb,x,s2,train\nc,x,s2,test\nd,x,,test\ne,x,,val\n"
    )
    rows = read_manifest(write(tmp_path / "m.csv", text)).rows
    shared = shared_speakers((row.speaker, row.split) for row in rows)
    assert shared == {"s2": ["train", "test"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,emotion\na.mp4,sad\n", "label, split missing, found path, emotion"),
        ("", "path, label, split missing, found none"),
        ("path,label,split\n", "no rows"),
    ],
)
def test_no_manifest(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_manifest(write(tmp_path / "m.csv", text))


def test_binary_and_absent(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,label\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_manifest(tmp_path / "none.csv")


def test_links_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    for folder in (root, outside):
        (folder / "a.mp4").touch()
    (root / "file.mp4").symlink_to(outside / "a.mp4")
    (root / "folder").symlink_to(outside)
    (root / "inside.mp4").symlink_to(root / "a.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (tmp_path / "link").symlink_to(root)
    assert locate(root, "file.mp4") is None
    assert locate(root, "folder/a.mp4") is None
    assert locate(root, "inside.mp4") == root / "a.mp4"
    assert locate(tmp_path / "link", "a.mp4") == root / "a.mp4"
    assert locate(root, "loop.mp4") is not None  # opening it says what is wrong
    assert locate(root, "nul\0.mp4") is not None


# Every character that ends a line for str.splitlines, or might for other tools, and a line break
# of each kind: inside of a cell they are text.
@pytest.mark.parametrize(
    "mark", [*"\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n", "\r", "\r\n", "\n\n", '"', ",", "\ufeff"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "columns", [("path", "words", "label", "split"), ("words", "split", "label", "path")]
)
def test_line_breaks_in_cells(tmp_path: Path, mark: str, end: str, columns: tuple) -> None:
    text = io.StringIO(newline="")
    # Without quotes what ends no row, as other writers have it; ours leaves out some that are needed.
    quoting = csv.QUOTE_ALL if set(mark) & set("\r\n") else csv.QUOTE_MINIMAL
    table = csv.DictWriter(text, columns, lineterminator=end, quoting=quoting)
    table.writeheader()
    for name in ("a.mp4", "b.mp4"):
        words = f"well{mark} I see"
        table.writerow({"path": name, "words": words, "label": "joy", "split": "train"})
    path = tmp_path / "m.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    rows = read_manifest(path).rows
    assert [(r.path, r.label, r.split, r.fault) for r in rows] == [
        (name, "joy", "train", "") for name in ("a.mp4", "b.mp4")
    ]


def test_one_file_is_one_clip(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.mp4", "b/c.mp4"):
        (tmp_path / name).write_text(name)
    (tmp_path / "soft.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "d").symlink_to(tmp_path / "b")
    os.link(tmp_path / "a.mp4", tmp_path / "hard.mp4")
    names = ["a.mp4", "./a.mp4", "b//c.mp4", "b/./c.mp4", "soft.mp4", "d/c.mp4", "hard.mp4"]
    names += ["none.mp4", "b/none.mp4"]
    text = "path,label,split\n" + "".join(f"{name},sad,train\n" for name in names)
    rows = checked(read_manifest(write(tmp_path / "m.csv", text)).rows, tmp_path)
    first, second = (reason("duplicate", f"also in row {row}") for row in (1, 3))
    faults = [row.fault for row in rows]
    assert faults == ["", first, "", second, first, second, first, "", ""]


def test_parts_of_files(tmp_path: Path) -> None:
    """A file may be several clips, told apart by their times, or one of its streams or halves."""
    text = "path,label,split,group,start,end,half,streams\n" + "\n".join(
        [
            "a.avi,sad,train,one,0.5,2,left,",
            "a.avi,sad,train,one,2,4.25,,video audio",
            "a.avi,sad,train,one,0.5,2.0,left,",
            "a.avi,sad,train,one,4.25,,,",
            "b.wav,sad,train,one,,,,audio",
            "c.avi,sad,train,one,3,2,,",
            "c.avi,sad,train,one,-1,2,,",
            "c.avi,sad,train,one,soon,2,,",
            "c.avi,sad,train,one,nan,2,,",
            "c.avi,sad,train,one,1,2,top,",
            "c.avi,sad,train,one,2,3,,smell",
        ]
    )
    rows = checked(read_manifest(write(tmp_path / "m.csv", text)).rows, tmp_path)
    assert [row.cut for row in rows[:2]] == [Cut(0.5, 2.0, "left"), Cut(2.0, 4.25)]
    assert [row.cut for row in rows[3:5]] == [Cut(4.25), WHOLE]
    assert [row.name for row in rows[:5]] == [
        "a.avi#0.5-2",
        "a.avi#2-4.25",
        "a.avi#0.5-2.0",
        "a.avi#4.25",
        "b.wav",
    ]
    assert [row.streams for row in rows[:5:2]] == [(), (), ("audio",)]
    assert rows[1].streams == ("audio", "video")
    assert {row.group for row in rows} == {"one"}
    assert [category_of(row.fault) for row in rows] == [
        *("", "", "duplicate", "", ""),
        *["no such stretch"] * 4,
        "unknown half",
        "unknown stream",
    ]
