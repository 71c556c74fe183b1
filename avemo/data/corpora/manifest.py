"""A corpus that the file manifest.csv in its folder lists."""

from __future__ import annotations

from pathlib import Path

from avemo.data.corpora.corpus import Corpus
from avemo.data.corpora.listing import Listing
from avemo.data.manifest import read_manifest

FILE = "manifest.csv"


def read(root: Path) -> Listing:
    """Lists the clips of `manifest.csv` in the root.

    Raises:
        FileNotFoundError, ValueError: see :func:`avemo.data.manifest.read_manifest`.
    """
    return read_manifest(root / FILE)


CORPUS = Corpus(read)
