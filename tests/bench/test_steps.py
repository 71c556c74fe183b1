"""Training steps beside another commit: the same steps on all sides, by each side's own packages."""

import json
from pathlib import Path

import pytest

from bench import checkout, steps
from bench.__main__ import main


@pytest.mark.slow
def test_beside_itself(tmp_path: Path) -> None:
    words = ["steps", "--against", "HEAD", "--turns", "2", "--configurations", "small"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("steps-*.json")
    values = json.loads(file.read_text("utf-8"))
    assert values["before"] == "HEAD"
    found = values["steps"]["small"]
    assert set(found["seconds"]) == {"now", "kernels", "before"}
    assert set(found["share"]) == {"now", "kernels"}
    now, before = (found["seconds"][side]["median"] for side in ("now", "before"))
    assert 0.2 < now / before < 5


def test_other_steps_are_no_comparison() -> None:
    assert steps._alike([1.0, 2.0], [1.0005, 1.999])
    assert not steps._alike([1.0, 2.0], [1.0, 2.01])


def test_turns_begin_with_each_side_as_often() -> None:
    asked: list[tuple[str, int]] = []

    class Side:
        def __init__(self, name: str) -> None:
            self.name = name

        def time(self, _: str, calls: int) -> float:
            asked.append((self.name, calls))
            return float(len(asked))

    sides = {name: Side(name) for name in ("now", "before")}
    samples = checkout.in_turn(sides, "", {"now": 3, "before": 4}, 2)  # type: ignore[arg-type]
    assert asked == [("now", 3), ("before", 4), ("before", 4), ("now", 3)]
    assert samples == {"now": [1.0, 4.0], "before": [2.0, 3.0]}
