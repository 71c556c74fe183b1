"""Writes docs/benchmarks.md, its pictures, the README's results and the sections of other pages, or checks them."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import comparison, export, systems
from .page import PAGE, PICTURES, page, picture_path, pictures
from .pictures import Picture, digest_of, save
from .readme import README, updated
from .results import Device, devices, found, goals, newest

ROOT = Path(__file__).parents[2]
SECTIONS = (export.SECTION, systems.SECTION, *comparison.SECTIONS)
_COMMAND = "python -m bench report"


def report(check: bool, root: Path = ROOT) -> int:
    """Writes or checks what is published of the results in bench/results.

    Pages are checked to be what would be written. A picture is checked to be there and to name the data that it
    would be drawn from; other versions of matplotlib may draw it with other bytes.

    Args:
        check: write nothing, print what differs.
        root: of the repository.

    Returns:
        0, or 1 where something differs, a result is missing or none.
    """
    try:
        reported, reached = devices(root), goals(root)
        demo = newest(found(root, "demo"))
        readme = updated((root / README).read_text("utf-8"), demo, reported, reached)
        pages: dict[Path, str] = {}
        for section in SECTIONS:  # several may be of one page
            text = pages.get(section.page) or (root / section.page).read_text("utf-8")
            pages[section.page] = section.updated(text, newest(found(root, section.kind)))
    except (OSError, ValueError) as error:
        print(f"{error}; `python -m bench run` measures", file=sys.stderr)
        return 1
    pages |= {README: readme, PAGE: page(reported, reached)}
    drawn = {
        picture_path(device, picture): (device, picture)
        for device in reported
        for shown in pictures(device).values()
        for picture in shown
    }
    if check:
        differences = [*_stale_pages(root, pages), *_stale_pictures(root, drawn)]
        for difference in differences:
            print(difference, file=sys.stderr)
        if differences:
            print(f"run {_COMMAND}", file=sys.stderr)
        return 1 if differences else 0
    _write(root, pages, drawn)
    return 0


Drawn = dict[Path, tuple[Device, Picture]]


def _write(root: Path, pages: dict[Path, str], drawn: Drawn) -> None:
    for path, text in pages.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, "utf-8")
    for path, (device, picture) in drawn.items():
        save(picture, root / path, device.digest)
    for path in _orphans(root, drawn):
        (root / path).unlink()


def _stale_pages(root: Path, pages: dict[Path, str]) -> Iterator[str]:
    for path, text in pages.items():
        there = (root / path).read_text("utf-8") if (root / path).is_file() else None
        if there is None:
            yield f"{path.as_posix()} is missing"
        elif there != text:
            yield (
                f"{path.as_posix()} is not what the results say: {_first_difference(there, text)}"
            )


def _first_difference(there: str, wanted: str) -> str:
    changes = difflib.unified_diff(there.splitlines(), wanted.splitlines(), lineterm="", n=0)
    return "\n".join(["", *_head([line for line in changes if line[:3] not in ("---", "+++")])])


def _head(lines: Sequence[str], most: int = 12) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"... and {len(lines) - most} lines more"]


def _stale_pictures(root: Path, drawn: Drawn) -> Iterator[str]:
    for path, (device, _) in drawn.items():
        if not (root / path).is_file():
            yield f"{path.as_posix()} is missing"
        elif digest_of(root / path) != device.digest:
            yield f"{path.as_posix()} was not drawn from {device.result.path.name}"
    for path in _orphans(root, drawn):
        yield f"{path.as_posix()} is no longer shown"


def _orphans(root: Path, drawn: Drawn) -> list[Path]:
    """Pictures that were drawn for pages of the past."""
    there = sorted((root / PICTURES).glob("*/*.svg"))
    return [path.relative_to(root) for path in there if path.relative_to(root) not in drawn]
