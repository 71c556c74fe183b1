"""Who is at work, written down beside a result, so that whoever ends the process is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avemo import storage


@dataclass(frozen=True)
class Now:
    """What is being done.

    Attributes:
        case: its name.
        contender: who runs; "" where all of the case do, or the reference.
        doing: what, as in "it was ...".
    """

    case: str
    contender: str
    doing: str

    def __str__(self) -> str:
        return f"{self.contender or 'all contenders'} in {self.case}, being {self.doing}"


def path_of(result: Path) -> Path:
    """Where the journal of a result is."""
    return result.with_suffix(".journal")


class Journal:
    """Keeps who is at work and who has failed, until a result has it; its file is there as long as there is either.

    Args:
        result: the file of the result, or None where nothing is kept beyond the process.
    """

    def __init__(self, result: Path | None) -> None:
        self.path = None if result is None else path_of(result)
        self._now: Now | None = None
        self._failed: dict[str, dict[str, str]] = {}
        try:
            values = json.loads(self.path.read_text("utf-8")) if self.path else None
        except FileNotFoundError:
            values = None
        if values:
            self._now = Now(*values["now"]) if values["now"] else None
            self._failed = values["failed"]

    @property
    def now(self) -> Now | None:
        """What is being done, or was when the process before ended."""
        return self._now

    def note(self, case: str, contender: str, doing: str) -> None:
        """Somebody is at work from now on."""
        self._now = Now(case, contender, doing)
        self._write()

    def rest(self) -> None:
        """Nobody is at work."""
        if self._now is not None:
            self._now = None
            self._write()

    def blame(self, how: str) -> Now | None:
        """Whoever is at work has failed; None where nobody is."""
        now = self._now
        if now is not None:
            failed = self._failed.setdefault(now.case, {})
            failed[now.contender] = f"{how} while it was {now.doing}"
            self.rest()
        return now

    def failed(self, case: str, names: Sequence[str]) -> dict[str, str]:
        """Which contenders of a case failed, and how; all where it was not one of them."""
        failed = self._failed.get(case, {})
        if "" in failed:
            return dict.fromkeys(names, failed[""]) | {n: w for n, w in failed.items() if n}
        return {name: failed[name] for name in names if name in failed}

    def settle(self, case: str) -> None:
        """The result has what became of a case."""
        self._failed.pop(case, None)
        self._now = None
        self._write()

    def forget(self) -> None:
        """What is to be done is begun anew."""
        self._failed, self._now = {}, None
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        if self._now is None and not self._failed:
            self.path.unlink(missing_ok=True)
            return
        now = self._now
        values: dict[str, Any] = {
            "now": [now.case, now.contender, now.doing] if now else None,
            "failed": self._failed,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(self.path, json.dumps(values))  # another process may read it, or end this one
