"""What `accelerate` did, and what it did not and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Replacement:
    """What became of one module of the model.

    Attributes:
        name: its path in the model, "" for the model itself.
        module: its class before.
        operator: what it computes.
        backend: which kernels run it from now on; where none was asked for, the best that is there.
        reason: why it stayed as it was, or "" where it was accelerated.
    """

    name: str
    module: str
    operator: str
    backend: str
    reason: str = ""

    def __str__(self) -> str:
        which = f"{self.name or '(the model)'}: {self.module}"
        if self.reason:
            return f"{which} stays as it was, on {self.backend}: {self.reason}"
        return f"{which} runs {self.operator} on {self.backend}"


@dataclass
class Layout:
    """Which convolutions were laid out channels last, where that was asked for.

    Attributes:
        changed: their names.
        left: why others stayed as they were, by name.
    """

    changed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"channels last: {', '.join(self.changed)}"] if self.changed else []
        lines += [
            f"not channels last: {name or '(the model)'}: {why}" for name, why in self.left.items()
        ]
        return "\n".join(lines)


class Report(list[Replacement]):
    """One entry for each module that `accelerate` knows; printed, it says in words what became of them.

    Attributes:
        layout: what became of the convolutions.
    """

    def __init__(self, entries: Iterable[Replacement] = (), layout: Layout | None = None) -> None:
        super().__init__(entries)
        self.layout = layout or Layout()

    @property
    def replaced(self) -> list[Replacement]:
        """What was accelerated."""
        return [entry for entry in self if not entry.reason]

    @property
    def left(self) -> list[Replacement]:
        """What stayed as it was; each entry has its reason."""
        return [entry for entry in self if entry.reason]

    def __str__(self) -> str:
        lines = [str(entry) for entry in self] or ["nothing here that accelerate knows"]
        return "\n".join([*lines, *filter(None, [str(self.layout)])])
