"""What `avemo paper` and `avemo fairness` found is kept whole, with the machine that trained it."""

import csv
import json
import os
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from bench.comparison import keep

from .made_up import FAIRNESS, TRAINED_ON


def _trained(run: Path, started: str, **machine: Any) -> None:
    run.mkdir(parents=True)
    start = {
        "started": started,
        "commit": f"of {started}",
        "versions": {"torch": "2.11.0"},
        "machine": TRAINED_ON | machine,
    }
    (run / "run.json").write_text(json.dumps({"starts": [start]}))


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Of the results and of the pictures."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results", tmp_path / "pictures"


def test_tables_and_pictures_of_the_paper(tmp_path: Path, places: tuple[Path, Path]) -> None:
    folder, (results, pictures) = tmp_path / "paper", places
    _trained(folder / "runs" / "am_fbp" / "seed0", "2026-01-02T10:00:00+0000", family="AMD Zen 3")
    _trained(folder / "runs" / "g_fbp" / "seed0", "2026-01-02T10:00:00+0100")
    rows = [{"name": "AM-FBP", "accuracy": "0.8"}, {"name": "others", "accuracy": ""}]
    with (folder / "table-III.csv").open("w", newline="") as opened:
        table = csv.DictWriter(opened, ["name", "accuracy"])
        table.writeheader()
        table.writerows(rows)
    (folder / "paper.json").write_text(json.dumps({"config": "small"}))
    pictures.mkdir()
    (pictures / "figure-of-old.png").write_bytes(b"")
    (folder / "figure-7-1.png").write_bytes(b"picture")
    with pytest.raises(FileNotFoundError, match="finished there"):
        keep(folder, results, pictures)  # there is no page yet
    assert (pictures / "figure-of-old.png").exists()
    (folder / "README.md").write_text("# All")
    end = datetime.fromisoformat("2026-01-02T10:21:40+00:00").timestamp()
    os.utime(folder / "README.md", (end, end))
    file = keep(folder, results, pictures)
    assert file == results / f"paper-amd-zen3-avx2-{date.today().isoformat()}.json"
    kept = json.loads(file.read_text())
    assert kept["tables"] == {"III": rows}
    assert kept["config"] == "small"
    assert (kept["trainings"], kept["minutes"]) == (2, 82)
    assert (kept["machine"]["commit"], kept["machine"]["date"]) == (
        "of 2026-01-02T10:00:00+0000",
        "2026-01-02",
    )
    assert kept["pictures"] == ["figure-7-1.png"]
    assert [p.read_bytes() for p in pictures.iterdir()] == [b"picture"]


def test_what_the_controls_gave(tmp_path: Path, places: tuple[Path, Path]) -> None:
    folder = tmp_path / "fairness"
    _trained(
        folder / "as-it-is" / "runs" / "g_fbp" / "seed0", "2026-01-02T10:00:00+0000", gpu="A GPU"
    )
    found = {name: value for name, value in FAIRNESS.items() if name != "machine"}
    (folder / "fairness.json").write_text(json.dumps(found))
    file = keep(folder, *places)
    assert file.name == f"fairness-a-gpu-{date.today().isoformat()}.json"
    kept = json.loads(file.read_text())
    machine = kept.pop("machine")
    assert kept == found
    assert (machine["processor"], machine["torch"]) == ("Made Up 9000", "2.11.0")
