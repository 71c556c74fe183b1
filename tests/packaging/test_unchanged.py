"""A check is left out where it has passed on the same files, and nowhere else."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.fixture
def unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A copy of it, in a repository with a file and a folder."""
    folder = tmp_path / "kernels"
    (folder / "csrc").mkdir(parents=True)
    for name in ("sources.py", "unchanged.py"):
        shutil.copy(KERNELS / name, folder)
    (folder / "csrc" / "kernel.cu").write_text("// a kernel")
    (folder / "tool.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("sources", "unchanged"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("unchanged")
    for name in ("sources", "unchanged"):
        sys.modules.pop(name, None)


def runs(unchanged: ModuleType, tmp_path: Path, *more: str, status: int = 0) -> bool:
    """Whether the check was run; it ends with a status."""
    mark = tmp_path / "ran"
    mark.unlink(missing_ok=True)
    (tmp_path / "check.py").write_text(f"open({str(mark)!r}, 'w'); raise SystemExit({status})")
    names = ["check", *(more or ("kernels/csrc", "kernels/tool.py", "--package", "pytest"))]
    assert unchanged.main([*names, "--", str(tmp_path / "check.py")]) in (0, status)
    return mark.exists()


def test_what_passed_is_not_run_again(unchanged: ModuleType, tmp_path: Path) -> None:
    assert runs(unchanged, tmp_path)
    assert not runs(unchanged, tmp_path)
    assert runs(unchanged, tmp_path, "kernels/csrc"), "other files decide"
    assert runs(unchanged, tmp_path), "the record has one entry by name"


def test_what_failed_is_run_again_with_its_status(unchanged: ModuleType, tmp_path: Path) -> None:
    assert runs(unchanged, tmp_path, status=3)
    assert not unchanged.RECORD.exists()
    assert runs(unchanged, tmp_path)


@pytest.mark.parametrize("change", ["content", "name", "new", "version", "arguments", "tool"])
def test_any_change_runs_it(
    unchanged: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    more = ["kernels/csrc", "--package", "pytest", "--tool", sys.executable]
    assert runs(unchanged, tmp_path, *more)
    assert not runs(unchanged, tmp_path, *more)
    kernel = tmp_path / "kernels" / "csrc" / "kernel.cu"
    if change == "content":
        kernel.write_text("// another")
    elif change == "name":
        kernel.rename(kernel.with_name("other.cu"))
    elif change == "new":
        kernel.with_name("other.cu").write_text("")
    elif change == "version":
        monkeypatch.setattr(unchanged.metadata, "version", lambda _: "0")
    elif change == "tool":
        more[-1] = "git"
    else:
        check = [str(tmp_path / "check.py"), "--more"]
        assert unchanged.main(["check", *more, "--", *check]) == 0
        assert (tmp_path / "ran").unlink() is None
        return
    assert runs(unchanged, tmp_path, *more)


def test_what_is_not_there_is_named(unchanged: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        runs(unchanged, tmp_path, "nowhere")
    with pytest.raises(SystemExit):
        unchanged.main(["check", "kernels"])


def test_the_record_is_of_checks_that_make_has() -> None:
    record = json.loads((KERNELS / "unchanged.json").read_text("utf-8"))
    makefile = (KERNELS.parent / "Makefile").read_text("utf-8")
    assert set(record) == {"ptxas", "resources"}
    assert all(f"kernels/unchanged.py {name} " in makefile for name in record)
