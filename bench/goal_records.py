"""What `python -m bench goals` leaves: goals and what was reached, written as one JSON file."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from avemo import storage

from .records import Spread

VERSION = 1


@dataclass(frozen=True)
class Goal:
    """One goal: how many times faster ours has to be than a peer.

    Attributes:
        operator: a subject of `bench.operators`.
        label: of the sizes.
        sizes: by the field's letters.
        mode: "forward" or "training".
        peer: a contender; "one thread" is ours on one.
        least: the peer's time over ours, at least; or bytes over bytes where the peer is "eager's memory".
        dtype: of the inputs.
    """

    operator: str
    label: str
    sizes: dict[str, int]
    mode: str
    peer: str
    least: float
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """What identifies it."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.operator} {self.label}{dtype} {self.mode} / {self.peer}"


@dataclass(frozen=True)
class Reached:
    """What was measured of a goal.

    Attributes:
        goal: which.
        ratio: the peer's time over ours, turn by turn; None where one of the two could not be measured.
        turns: that count.
        hindered: turns that were thrown out.
        why: there is no ratio.
        seconds: of a call, medians of the turns that count: of "native", and of the peer where that is a contender
            beside it.
    """

    goal: Goal
    ratio: Spread | None
    turns: int = 0
    hindered: int = 0
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the median is what was asked for."""
        return self.ratio is not None and self.ratio.median >= self.goal.least


@dataclass(frozen=True)
class Goals:
    """What a run of the command leaves.

    Attributes:
        machine: as `bench.machine.describe` has it.
        reached: goal by goal.
    """

    machine: dict[str, Any]
    reached: list[Reached]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        values = {
            "version": VERSION,
            "machine": self.machine,
            "goals": [asdict(r) for r in self.reached],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Goals":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file was not written by this version.
        """
        values = json.loads(path.read_text("utf-8"))
        if (
            not isinstance(values, dict)
            or values.get("version") != VERSION
            or "goals" not in values
        ):
            raise ValueError(
                f"{path} is not a result of `python -m bench goals`, version {VERSION}"
            )
        return cls(values["machine"], [_reached(value) for value in values["goals"]])


def _reached(value: dict[str, Any]) -> Reached:
    spread = Spread(**value["ratio"]) if value["ratio"] else None
    return replace(Reached(**value), goal=Goal(**value["goal"]), ratio=spread)
