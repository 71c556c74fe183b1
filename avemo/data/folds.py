"""Other splits than the corpus's own: folds of speakers or of groups, each of them tested once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from avemo.data.cache import SPLITS, ClipCache, ClipInfo

By = Literal["speaker", "group"]


@dataclass(frozen=True)
class FoldConfig:
    """One of several folds. Its part is the test split, the next one's part the validation split.

    Attributes:
        number: of the fold, from 0; null keeps the corpus's own splits.
        count: into how many parts the speakers or groups are dealt; null makes each a part of its own:
            leave one speaker out, leave one group (such as a session) out.
        by: what stays together. Groups are those of the corpus.
    """

    number: int | None = None
    count: int | None = None
    by: By = "speaker"

    def __post_init__(self) -> None:
        if self.count is not None and self.count < len(SPLITS):
            raise ValueError(
                f"fold.count must be at least {len(SPLITS)}, for training, validation and test, "
                f"got {self.count}"
            )
        if self.number is not None and self.number < 0:
            raise ValueError(f"fold.number must not be negative, got {self.number}")


def folded(clips: Sequence[ClipInfo], fold: FoldConfig) -> tuple[ClipInfo, ...]:
    """The clips with the splits of a fold in place of their own, or as they are where it is none.

    Raises:
        ValueError: a clip's speaker or group is not known, or there are too few of them.
    """
    if fold.number is None:
        return tuple(clips)
    parts = deal(clips, fold.by, fold.count)
    count = max(parts.values()) + 1
    if fold.number >= count:
        raise ValueError(
            f"fold.number must be below {count}, the number of folds, got {fold.number}"
        )
    split = {fold.number: "test", (fold.number + 1) % count: "val"}
    return tuple(
        replace(clip, split=split.get(parts[getattr(clip, fold.by)], "train")) for clip in clips
    )


def deal(clips: Sequence[ClipInfo], by: By, count: int | None) -> dict[str, int]:
    """The part that each speaker or group is in.

    Whoever has the most clips is dealt first, to the part where the classes are then the most even, of
    equals to the first: that depends on the clips alone, not on their order nor on any library, so that a
    model is never tested on those it was trained on.

    Args:
        clips: of the corpus.
        by: what stays together.
        count: of the parts, or None for one for each.

    Raises:
        ValueError: a clip's speaker or group is not known, or there are fewer than parts.
    """
    unknown = [clip.path for clip in clips if not getattr(clip, by)]
    if unknown:
        raise ValueError(
            f"folds by {by} need the {by} of every clip; {len(unknown)} of {len(clips)} have none, "
            f"such as {unknown[0]}"
        )
    classes: dict[str, Counter[str]] = {}
    for clip in clips:
        classes.setdefault(getattr(clip, by), Counter())[clip.label] += 1
    least = count or len(SPLITS)
    if len(classes) < least:
        raise ValueError(f"{least} folds by {by} need as many of them, got {len(classes)}")
    if count is None:
        return {name: part for part, name in enumerate(sorted(classes))}
    parts: list[Counter[str]] = [Counter() for _ in range(count)]
    dealt: dict[str, int] = {}
    for left, name in enumerate(
        sorted(classes, key=lambda n: (-classes[n].total(), n)), start=-len(classes)
    ):
        empty = [part for part in range(count) if not parts[part]]
        # The last ones go where nothing is yet.
        open_parts = empty if -left <= len(empty) else range(count)
        dealt[name] = min(open_parts, key=lambda p: _unevenness(parts[p], classes[name]))
        parts[dealt[name]] += classes[name]
    return dealt


def _unevenness(part: Counter[str], more: Counter[str]) -> int:
    """How much the sum of squares over classes grows: least where these classes are few."""
    return sum((part[name] + count) ** 2 - part[name] ** 2 for name, count in more.items())


def folds(cache: Path, *, by: By = "speaker", count: int | None = None) -> list[dict[str, str]]:
    """Shows the folds of a corpus, which `avemo train` takes by `--data.fold.number` and so on.

    Args:
        cache: folder that `avemo prepare` wrote.
        by: what stays together: speakers, or the corpus's groups, such as sessions.
        count: into how many folds they are dealt; by default each is a fold of its own.

    Returns:
        What is shown, fold by fold.

    Raises:
        ValueError: a clip's speaker or group is not known, or there are too few of them.
    """
    clips = ClipCache(cache).clips
    parts = deal(clips, by, FoldConfig(0, count, by).count)
    rows = []
    for number in range(max(parts.values()) + 1):
        tested = [clip for clip in clips if parts[getattr(clip, by)] == number]
        classes = Counter(clip.label for clip in tested)
        rows.append(
            {
                "fold": str(number),
                "clips": str(len(tested)),
                "classes": ", ".join(f"{classes[name]} {name}" for name in sorted(classes)),
                "tested": ", ".join(sorted({getattr(clip, by) for clip in tested})),
            }
        )
    for row in rows:
        print(f"fold {row['fold']}: {row['clips']} clips ({row['classes']}) of {row['tested']}")
    return rows
