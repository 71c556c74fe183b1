"""IEMOCAP: ten actors in five sessions of two. A clip is a turn, cut out of the film of its dialog.

The film shows both actors side by side. The one who wears the markers, after whom the dialog is named
(Ses01F: the woman), is on the left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from avemo.data.corpora.corpus import ANY, Corpus, Published, deal_folds
from avemo.data.corpora.listing import Listing, Row
from avemo.data.corpora.tree import Tree, listed
from avemo.data.media import BOTH, Cut
from avemo.data.reasons import reason

EMOTIONS = {
    "ang": "angry",
    "hap": "happy",
    "sad": "sad",
    "neu": "neutral",
    "exc": "excited",
    "fru": "frustrated",
    "fea": "fearful",
    "sur": "surprised",
    "dis": "disgusted",
    "oth": "other",
    "xxx": "undecided",
}
"""By the code that the evaluations sum up by: what most annotators chose, xxx where no most did."""

SESSIONS = tuple(f"Session{n}" for n in range(1, 6))
_SPLIT = deal_folds(SESSIONS)

_EVALUATION = re.compile(
    r"(?P<session>(.*/)?session[1-5])/dialog/emoevaluation/(?P<dialog>[^/]+)\.txt", re.IGNORECASE
)
_FILM = re.compile(r"(.*/)?session[1-5]/dialog/avi/divx/(?P<dialog>[^/]+)\.avi", re.IGNORECASE)
_LINE = re.compile(r"\[(?P<start>\d+\.\d+) - (?P<end>\d+\.\d+)\]\t(?P<turn>\w+)\t(?P<code>\w*)\t")
_TURN = re.compile(r"(?P<dialog>Ses0(?P<session>[1-5])(?P<marked>[FM])_\w+)_(?P<sex>[FM])\w+")


def read(root: Path) -> Listing:
    """Lists the turns of all dialogs that have an evaluation.

    Raises:
        ValueError: there are none.
    """
    tree = Tree(root)
    rows: list[Row] = []
    odd: Counter[str] = Counter()
    dialogs: set[str] = set()
    for path in tree.files:
        found = _EVALUATION.fullmatch(path)
        if found:
            dialogs.add(found["dialog"].casefold())
            rows += _turns(tree, path, found["session"], odd)
    if not dialogs:
        raise ValueError(
            f"{root} must have Session1/dialog/EmoEvaluation/*.txt, found none of them"
        )
    films = {m["dialog"]: path for path in tree.files if (m := _FILM.fullmatch(path))}
    unlabelled = [path for name, path in sorted(films.items()) if name.casefold() not in dialogs]
    there = {row.group for row in rows}
    remarks = (
        listed("sessions without turns", (name for name in SESSIONS if name not in there)),
        listed("films without an evaluation", unlabelled),
        listed(
            "evaluations with lines that cannot be read",
            (f"{path}: {n}" for path, n in odd.items()),
        ),
    )
    return Listing(tuple(rows), remarks=(*filter(None, remarks), *tree.remarks()))


CORPUS = Corpus(
    read,
    classes=("angry", "happy", "neutral", "sad"),
    published=Published(
        {
            ANY: {
                "angry": 1103,
                "happy": 595,
                "sad": 1084,
                "neutral": 1708,
                "excited": 1041,
                "frustrated": 1849,
                "fearful": 40,
                "surprised": 107,
                "disgusted": 2,
                "other": 3,
                "undecided": 2507,
            }
        },
        speakers=10,
    ),
)


def _turns(tree: Tree, path: str, session: str, odd: Counter[str]) -> Iterator[Row]:
    """The turns of an evaluation; its lines in brackets that are no turn are counted in `odd`."""
    for line in (tree.root / path).read_text("latin-1").splitlines():
        if line.startswith("[") and "]\t" in line:
            found = _LINE.match(line)
            turn = _TURN.fullmatch(found["turn"]) if found else None
            if found and turn:
                yield _row(tree, session, found, turn)
            else:
                odd[path] += 1


def _row(tree: Tree, session: str, line: re.Match[str], turn: re.Match[str]) -> Row:
    film = f"{session}/dialog/avi/DivX/{turn['dialog']}.avi"
    group = f"Session{turn['session']}"
    half = "left" if turn["sex"] == turn["marked"] else "right"
    code = line["code"].lower()
    return Row(
        tree.find(film) or film,
        EMOTIONS.get(code, ""),
        _SPLIT[group],
        speaker=f"Ses0{turn['session']}{turn['sex']}",
        group=group,
        cut=Cut(float(line["start"]), float(line["end"]), half),
        turn=turn[0],
        streams=BOTH,
        fault="" if code in EMOTIONS else reason("no label", f"no emotion has the code {code!r}"),
    )
