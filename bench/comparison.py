"""Keeps what `avemo paper` and `avemo fairness` found with the committed results.

`python -m bench.comparison runs/paper runs/fairness`: each folder is one of theirs, told by what is in it. Figures of
`avemo paper` are copied for docs/comparison.md to show.
"""

import argparse
import csv
import json
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

from avemo.machine import Processor, slug
from avemo.training.provenance import TIME

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "comparison"


def main() -> None:
    """Writes paper-DEVICE-DATE.json and fairness-DEVICE-DATE.json, each if its folder is given."""
    parser = argparse.ArgumentParser(prog="python -m bench.comparison", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="of a finished command")
    for folder in parser.parse_args().folders:
        print(f"written to {keep(folder, RESULTS, PICTURES)}")


def keep(folder: Path, results: Path, pictures: Path) -> Path:
    """Keeps what a command left.

    Args:
        folder: of `avemo paper` or `avemo fairness`.
        results: where the file goes.
        pictures: where the figures of `avemo paper` go, in place of older ones.

    Returns:
        The file.

    Raises:
        FileNotFoundError: neither command has finished there.
    """
    if (folder / "fairness.json").is_file():
        kind, found = "fairness", json.loads((folder / "fairness.json").read_text("utf-8"))
    elif (folder / "README.md").is_file() and (folder / "paper.json").is_file():
        kind, found = "paper", _tables(folder) | _effort(folder)
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir(parents=True)
        for picture in sorted(folder.glob("figure-*.png")):
            shutil.copy(picture, pictures)
        found["pictures"] = [picture.name for picture in sorted(pictures.iterdir())]
    else:
        raise FileNotFoundError(
            f"{folder}: neither `avemo paper` nor `avemo fairness` finished there"
        )
    machine = _machine(folder)
    processor = Processor(machine["processor"], machine["family"], machine["instruction_set"])
    device = slug(machine["gpu"] or "") or processor.slug
    file = results / f"{kind}-{device}-{date.today().isoformat()}.json"
    file.write_text(json.dumps({"machine": machine} | found, indent=1) + "\n", "utf-8")
    return file


def _tables(folder: Path) -> dict[str, Any]:
    tables = {}
    for file in sorted(folder.glob("table-*.csv")):
        with file.open(newline="", encoding="utf-8") as opened:
            tables[file.stem.removeprefix("table-")] = list(csv.DictReader(opened))
    return json.loads((folder / "paper.json").read_text("utf-8")) | {"tables": tables}


def _effort(folder: Path) -> dict[str, int]:
    """How many trainings there were, and the minutes from the beginning of the first to the page."""
    records = _records(folder)
    first = min(_begun(starts[0]) for starts in records)
    seconds = (folder / "README.md").stat().st_mtime - first.timestamp()
    return {"trainings": len(records), "minutes": round(seconds / 60)}


def _machine(folder: Path) -> dict[str, Any]:
    """Where the trainings ran, by the record of the last of them to begin."""
    start = max((start for starts in _records(folder) for start in starts), key=_begun)
    machine = start["machine"] | {"processor": start["machine"]["name"]}
    made = {"torch": start["versions"]["torch"], "commit": start["commit"]}
    return machine | made | {"date": start["started"][:10]}


def _begun(start: dict[str, Any]) -> datetime:
    return datetime.strptime(start["started"], TIME)


def _records(folder: Path) -> list[list[dict[str, Any]]]:
    """The starts of each run."""
    return [json.loads(file.read_text("utf-8"))["starts"] for file in folder.rglob("run.json")]


if __name__ == "__main__":
    main()
