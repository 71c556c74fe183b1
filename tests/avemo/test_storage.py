"""Files are whole or as they were, and a folder has one writer."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from avemo.storage import FolderInUseError, WriteError, one_writer, write
from tests.avemo.writers import hold, one_writer_elsewhere


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a", "ä")
    write(tmp_path / "a", b"second")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"second"}


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_on_a_full_disk_the_old_file_stays_and_the_new_one_is_named(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(WriteError, match=f"cannot write {tmp_path / 'a'}: No space left on device"):
        write(tmp_path / "a", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def test_the_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    write(tmp_path / "a", "x")
    assert order == [
        "fsync",
        "replace",
        "fsync",
    ]  # the file, its name, the folder that has the name


def test_a_folder_has_one_writer_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with one_writer_elsewhere(folder, "avemo train") as holder:
        said = rf"{folder} is being written by avemo train, process {holder.pid} on .*; wait for it"
        with pytest.raises(FolderInUseError, match=said), one_writer(folder, "avemo prepare"):
            pass
    (folder / "resume.ckpt.99.part").write_text("half")
    with one_writer(folder, "avemo prepare"):
        assert [p.name for p in folder.iterdir()] == ["writing.lock"]
        (folder / "kept").write_text("")
    assert [p.name for p in folder.iterdir()] == ["kept"]


def test_a_child_that_lives_longer_does_not_keep_the_folder(tmp_path: Path) -> None:
    """As processes that read ahead do for a moment."""
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    with one_writer(folder, "avemo train"):
        child = context.Process(target=signal.pause, daemon=True)
        child.start()
    try:
        other = hold(folder, "avemo train", 0)
        assert other.communicate(timeout=60)[0] == b"mine\n"
    finally:
        child.kill()
        child.join()


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), one_writer(tmp_path / "run", "avemo train"):
        raise ValueError("no")
    assert not (tmp_path / "run").exists()
