"""What `avemo predict` prints: a table for people, CSV or JSON lines for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avemo.text import printable

if TYPE_CHECKING:
    from avemo.data.reasons import MediaError
    from avemo.evaluation.predict import Prediction, Predictions

_BAR = 30  # characters of a probability of 1


class Writer:
    """Prints results as they come; why a clip cannot be used goes to standard error as well.

    Args:
        format: "table", "csv" or "jsonl".
        classes: the emotions, in the order of CSV's columns.
    """

    def __init__(self, format: Literal["table", "csv", "jsonl"], classes: tuple[str, ...]) -> None:
        self._format, self._classes = format, classes
        if format == "csv":
            self._row(["path", "emotion", "probability", *classes, "skipped", "picture", "error"])

    def write(self, clip: Path, result: Prediction | MediaError) -> None:
        """Prints what came of a clip."""
        if isinstance(result, Exception):
            print(printable(f"{clip}: cannot be used: {result}"), file=sys.stderr)
            if self._format == "csv":
                self._row([clip, "", "", *[""] * len(self._classes), "", "", result])
            elif self._format == "jsonl":
                self._line({"path": str(clip), "error": str(result)})
            return
        if self._format == "table":
            print(table(result))
            return
        best, probability = next(iter(result.probabilities.items()))
        if self._format == "csv":
            values = [result.probabilities[name] for name in self._classes]
            skipped = sum(result.skipped.values())
            self._row([clip, best, probability, *values, skipped, result.picture or "", ""])
            return
        values_over_time = [
            {
                "start": s,
                "end": e,
                "probabilities": dict(zip(self._classes, p.tolist(), strict=True)),
            }
            for s, e, p in result.line
        ]
        self._line(
            {
                "path": str(clip),
                "emotion": best,
                "probabilities": result.probabilities,
                "skipped": result.skipped,
                "picture": result.picture and str(result.picture),
                "windows": values_over_time,
                "files": [str(file) for file in result.files],
                "error": None,
            }
        )

    def close(self, predictions: Predictions) -> None:
        """Prints how many clips failed, and why, if any did; not between a program's lines."""
        failed = Counter(error.category for error in predictions.failed.values())
        if failed:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(failed.items()))
            total = len(predictions) + len(predictions.failed)
            stream = sys.stdout if self._format == "table" else sys.stderr
            print(f"{len(predictions)} of {total} clips predicted; errors: {reasons}", file=stream)

    def _row(self, cells: list[Any]) -> None:
        csv.writer(sys.stdout, lineterminator="\n").writerow(cells)

    def _line(self, values: dict[str, Any]) -> None:
        print(json.dumps(values))


def table(prediction: Prediction) -> str:
    """A prediction as text."""
    lines = [printable(str(prediction.clip)), *bars(prediction.probabilities)]
    for reason, count in sorted(prediction.skipped.items()):
        lines.append(f"  windows left out: {count} ({reason})")
    if prediction.picture:
        lines.append(printable(f"  picture: {prediction.picture}"))
    if prediction.files:
        lines.append(printable(f"  time line: {', '.join(map(str, prediction.files))}"))
    return "\n".join(lines)


def bars(probabilities: dict[str, float]) -> list[str]:
    """A line for each class, with a bar."""
    ranked = [(printable(name), value) for name, value in probabilities.items()]
    width = max(len(name) for name, _ in ranked)
    return [
        f"  {name:<{width}}  {value:6.1%}  {'#' * round(_BAR * value)}".rstrip()
        for name, value in ranked
    ]
