"""The sections of docs/comparison.md: the paper's tables and figures again, and what the corpus's controls gave."""

import json
from pathlib import Path
from typing import Any

from avemo.fairness import tables
from avemo.machine import title
from avemo.paper import CAPTIONS, pictures_of, table_lines

from .results import Result, link_to, of_commit
from .sections import Section

_PAGE = Path("docs/comparison.md")


def _paper(result: Result) -> list[str]:
    found = json.loads(result.path.read_text("utf-8"))
    effort = f"{found['trainings']} trainings, page and all in {found['minutes']} minutes"
    lines = [f"Configuration {found['config']}, {effort}, {_from(result, found)}"]
    for number, rows in found["tables"].items():
        split = next(row["split"] for row in rows if row["split"])
        lines += ["", f"**Table {number}**, {split} split:", "", *table_lines(rows)]
    for number, caption in CAPTIONS.items():
        if shown := pictures_of(number, found["pictures"]):
            lines += ["", f"**Figure {number}**: {caption}.", ""]
            lines += [f"![{caption}](comparison/{picture})" for picture in shown]
    return lines


def _fairness(result: Result) -> list[str]:
    found = json.loads(result.path.read_text("utf-8"))
    seeds = f"{found['seeds']} seeds"
    return [f"Configuration {found['config']}, {seeds}, {_from(result, found)}", "", *tables(found)]


def _from(result: Result, found: dict[str, Any]) -> str:
    machine = found["machine"]
    where = f"trained on {title(machine)}, torch {machine['torch']}"
    return f"{where}, {link_to(result)}: {of_commit(machine)}."


SECTIONS = (
    Section(_PAGE, "paper", "paper", _paper),
    Section(_PAGE, "fairness", "fairness", _fairness),
)
