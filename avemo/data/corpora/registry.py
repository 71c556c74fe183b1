"""The corpora by their names. A corpus is one file beside this one, and one line in `CORPORA`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from avemo.data.corpora import afew, crema_d, folders, iemocap, manifest, meld, ravdess
from avemo.data.corpora.corpus import Corpus
from avemo.data.corpora.listing import Listing, checked
from avemo.data.manifest import read_manifest

CORPORA: dict[str, Corpus] = {
    "afew": afew.CORPUS,
    "crema_d": crema_d.CORPUS,
    "folders": folders.CORPUS,
    "iemocap": iemocap.CORPUS,
    "manifest": manifest.CORPUS,
    "meld": meld.CORPUS,
    "ravdess": ravdess.CORPUS,
}


def find_corpus(name: str) -> Corpus:
    """A corpus by its name, or the one that a manifest lists, by the path of that.

    Raises:
        ValueError: there is no corpus of that name.
    """
    if name in CORPORA:
        return CORPORA[name]
    if name.lower().endswith(".csv"):
        return Corpus(lambda _: read_manifest(Path(name)))
    raise ValueError(
        f"there is no corpus {name!r}; expected one of {', '.join(CORPORA)}, or a manifest (.csv)"
    )


def list_clips(
    corpus: Corpus, root: Path, merge: Mapping[str, str], classes: Sequence[str]
) -> Listing:
    """The clips of a corpus in a folder, each checked on its own.

    Args:
        corpus: how it is read.
        root: its folder.
        merge: labels to rename, old to new.
        classes: labels to take, after that; the corpus's own choice if there are none.

    Raises:
        FileNotFoundError: there is no such folder, or no list in it.
        ValueError: it is no such corpus, or has no such labels.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}")
    listing = corpus.read(root)
    listing.expect_labels("merge", merge)
    merged = listing.chosen(merge, ())
    merged.expect_labels("classes", classes)
    chosen = merged.chosen({}, tuple(classes) or corpus.classes)
    return replace(chosen, rows=checked(chosen.rows, root))
