"""Rows are checked one by one; only a manifest that is none at all is an error."""

from pathlib import Path

import pytest

from avemo.data.manifest import locate, read_manifest


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
    manifest = read_manifest(write(tmp_path / "m.csv", text))
    faults = [row.fault for row in manifest.rows]
    assert faults == [
        "",
        "no label",
        "unknown split: 'dev' is none of train, val, test",
        "no path",
        "duplicate: also in row 1",
        "path outside of the root",
        "path outside of the root",
        "path outside of the root",
        "path outside of the root",
        "no path",
        "",
    ]
    assert manifest.rows[0].path == "a, b/ä.mp4"
    assert manifest.rows[10].speaker == ""


def test_speakers_in_two_splits(tmp_path: Path) -> None:
    text = (
        "path,label,speaker,split\na,x,s1,train\nb,x,s2,train\nc,x,s2,test\nd,x,,test\ne,x,,val\n"
    )
    assert read_manifest(write(tmp_path / "m.csv", text)).shared_speakers() == ["s2"]


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
