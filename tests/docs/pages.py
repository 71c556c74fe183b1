"""The code of a page, block by block."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(r"(?:^<!-- run: not; ([^\n]+) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: where it begins.
        language: as the fence says.
        code: without the fence's indentation.
        why_not: why the page says that it is not to be run, or "".
    """

    line: int
    language: str
    code: str
    why_not: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell's block."""
        return self.code.strip().splitlines()


def blocks(page: str) -> list[Block]:
    """Those of a page, by its path in the repository."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(
            text.count("\n", 0, found.start()) + 1,
            found[3],
            re.sub(f"^{found[2]}", "", found[4], flags=re.M),
            found[1] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def pages() -> list[str]:
    """All that the site has, but for the changelog; CONTRIBUTING.md has a test of its own."""
    return ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
