"""Sections of pages that are written from one file each, between `<!-- NAME ... -->` and `<!-- end of NAME -->`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .results import Result


class Section(NamedTuple):
    """A section and where it comes from.

    Attributes:
        page: that it is in.
        name: of its marks.
        kind: of the file, KIND-DEVICE-DATE.json.
        lines: the text for a file.
    """

    page: Path
    name: str
    kind: str
    lines: Callable[[Result], list[str]]

    def updated(self, text: str, result: Result) -> str:
        """The page with the section that a file gives.

        Raises:
            ValueError: it has no place for it.
        """
        begin, end = text.find(f"<!-- {self.name}"), text.find(f"<!-- end of {self.name} -->")
        if not 0 <= begin < end:
            raise ValueError(f"{self.page} has no section between the marks of {self.name!r}")
        mark = f"<!-- {self.name}: written by `python -m bench report`, from the file that is named -->"
        return text[:begin] + "\n".join([mark, "", *self.lines(result), ""]) + text[end:]
