"""The committed examples, and the page's figures that follow from them."""

import json
import shutil
from pathlib import Path

import pytest

from profiling import examples
from profiling.report import PICTURE, PROFILE, TABLES, TRACE


def test_the_page_and_the_tables_are_what_the_profiles_say() -> None:
    assert examples.differences() == [], "run python -m profiling.examples --write"


def test_every_example_is_there_and_small() -> None:
    for example in examples.EXAMPLES:
        for name in (PROFILE, TABLES, PICTURE):
            assert 0 < (example.folder / name).stat().st_size < 200_000
        trace = example.folder / TRACE
        assert trace.exists() == example.keeps_trace
        assert not trace.exists() or trace.stat().st_size < 1_000_000


def test_commands_are_those_of_the_examples() -> None:
    for example in examples.EXAMPLES:
        asked = " ".join(("python -m", example.module, *example.arguments))
        assert example.profile().command == asked


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples and the page, to be changed."""
    shutil.copytree(examples.FOLDER, tmp_path / "profiling")
    shutil.copy(examples.PAGE, tmp_path / "profiling.md")
    monkeypatch.setattr(examples, "ROOT", tmp_path)
    monkeypatch.setattr(examples, "FOLDER", tmp_path / "profiling")
    monkeypatch.setattr(examples, "PAGE", tmp_path / "profiling.md")
    return tmp_path


def test_a_changed_profile_is_noticed_and_written(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "profiling" / "step-accelerated" / PROFILE
    values = json.loads(path.read_text())
    values["seconds"]["median"] = 0.012345
    path.write_text(json.dumps(values))
    assert examples.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "profiling.md is not what the profiles say" in told
    assert "profiling/step-accelerated/profile.md is not" in told
    assert examples.main(["--write"]) == 0
    assert "A step that nothing watches takes 12.3 ms" in (copy / "profiling.md").read_text()
    assert examples.main(["--check"]) == 0


def test_side_by_side_adds_up() -> None:
    reference, accelerated = examples.REFERENCE.profile(), examples.ACCELERATED.profile()
    rows = examples.side_by_side(reference, accelerated).splitlines()[2:]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    *parts, total = cells
    for column, whole in ((1, reference), (3, accelerated)):
        times = [float(row[column] or 0) for row in parts]
        assert sum(times) == pytest.approx(whole.account.total_ms, abs=0.05 * len(parts) + 0.01)
        assert float(total[column]) == pytest.approx(whole.account.total_ms, abs=0.06)
    for column in (2, 4):
        shares = [float(row[column].rstrip("%")) for row in parts]
        assert sum(shares) == pytest.approx(100, abs=0.05 * len(parts))


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="no '<!-- figures'"):
        examples.updated("no markers here")
