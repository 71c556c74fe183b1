"""What the CPU kernels are held to and what they reached, one machine beside the other."""

from collections.abc import Sequence
from string import ascii_uppercase

from ..goal_records import Goal, Reached
from ..shapes import SHAPES
from .figures import NOTHING, ratio_text, table
from .results import GoalResult, of_commit

_MODES = {"forward": "forward", "training": "forward and backward"}
_PRODUCTS = ("fbp", "trunk_fbp", "am_fbp")


def machines(results: Sequence[GoalResult], links: Sequence[str]) -> list[str]:
    """A line for each machine, under the letter that its column has.

    Args:
        results: of the machines.
        links: to their files.
    """
    return [
        f"- **{letter}**: {result.title}; {of_commit(result.goals.machine)}, {link}: "
        f"{sum(r.met for r in result.goals.reached)} of {len(result.goals.reached)} reached."
        for letter, result, link in zip(ascii_uppercase, results, links, strict=False)
    ]


def every_goal(results: Sequence[GoalResult]) -> list[str]:
    """All goals, a row each."""
    rows = [
        (g.operator, g.label, g.dtype, _MODES[g.mode], g.peer, *(_cell(r) for r in found))
        for g, found in _side_by_side(results)
    ]
    return table(["operator", "sizes", "dtype", "mode", "peer", *_letters(results)], rows)


def against_eager(results: Sequence[GoalResult]) -> list[str]:
    """The bilinear operators against eager PyTorch at the shapes that everybody measures."""
    rows = [
        (g.operator, g.label, g.dtype, _MODES[g.mode], *(_cell(r) for r in found))
        for g, found in _side_by_side(results)
        if g.peer == "eager" and g.operator in _PRODUCTS and g.label in SHAPES
    ]
    return table(["operator", "shape", "dtype", "mode", *_letters(results)], rows)


def _letters(results: Sequence[GoalResult]) -> list[str]:
    return list(ascii_uppercase[: len(results)])


def _side_by_side(
    results: Sequence[GoalResult],
) -> list[tuple[Goal, list[Reached | None]]]:
    """Every goal that any machine has, with what each of them reached; those of the longest list first."""
    found = [{r.goal.name: r for r in result.goals.reached} for result in results]
    names = dict.fromkeys(name for by in sorted(found, key=len, reverse=True) for name in by)
    together = [[by.get(name) for by in found] for name in names]
    return [(next(r.goal for r in row if r), row) for row in together]


def _cell(reached: Reached | None) -> str:
    """The ratio, and the goal where it is missed."""
    if reached is None:
        return NOTHING
    if reached.ratio is None:
        return reached.why
    # One turn has no spread.
    text = ratio_text(reached.ratio) if reached.turns != 1 else f"{reached.ratio.median:.2f}"
    return text if reached.met else f"{text}, **missed {reached.goal.least:.2f}**"
