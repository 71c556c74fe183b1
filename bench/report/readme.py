"""The results section of README.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avemo.machine import title

from ..names import ours
from ..records import Case
from ..shapes import STEPS
from . import charts
from . import goals as side_by_side
from .figures import against, main_rows, milliseconds, ratio_text, sizes, steps, table
from .page import PAGE, picture_path
from .results import RESULTS, Device, GoalResult, Result, of_commit

README = Path("README.md")
_BEGIN, _END = "<!-- results", "<!-- end of results -->"
_PEERS = ("eager", "compile")
_SYSTEMS = {"am_fbp": "AM-FBP, both streams", "audio": "audio only", "video": "video only"}


def updated(
    readme: str, demo: Result, devices: Sequence[Device], goals: Sequence[GoalResult]
) -> str:
    """The README with its results section as the result files have it.

    Raises:
        ValueError: it has no such section.
    """
    begin, end = readme.find(_BEGIN), readme.find(_END)
    if not 0 <= begin < end:
        raise ValueError(f"{README} has no section between {_BEGIN!r} and {_END!r}")
    return readme[:begin] + _section(demo, devices, goals) + readme[end + len(_END) :]


def _section(demo: Result, devices: Sequence[Device], goals: Sequence[GoalResult]) -> str:
    figures = json.loads(demo.path.read_text("utf-8"))
    lines = [f"{_BEGIN}: written by `python -m bench report`, from the files that it names -->", ""]
    lines += [*demo_table(figures), "", f"From {_link(demo)}.", ""]
    lines += _goals(goals)
    pictured = max(devices, key=lambda device: len(main_rows(device.run)), default=None)
    for device in devices:
        lines += device_results(device, picture=device is pictured)
    lines += [
        f"All figures, with memory, floors, curves and the sizes where ours loses: [{PAGE}]({PAGE})."
    ]
    return "\n".join([*lines, _END])


def _link(result: Result) -> str:
    return f"[{result.path.name}]({(RESULTS / result.path.name).as_posix()})"


def _goals(results: Sequence[GoalResult]) -> list[str]:
    if not results:
        return []
    return [
        "Bilinear pooling on CPUs, times faster than eager PyTorch (median, 10th to 90th percentile; below 1 it is "
        f"slower), and where that misses [what it is held to]({PAGE}#goals):",
        "",
        *side_by_side.machines(results, [_link(r.result) for r in results]),
        "",
        *side_by_side.against_eager(results),
        "",
    ]


def demo_table(result: dict[str, Any]) -> list[str]:
    """Recognition of held-out speakers, and the demo's training step with and without the kernels.

    Args:
        result: what `avemo demo --compare` left.
    """
    scores = result["scores"]
    clips, chance = scores["am_fbp"]["clips"], scores["am_fbp"]["chance"]
    machine, demo_steps = result["machine"], result["steps"]
    rows = [
        (
            system,
            _accuracy(scores[name]),
            f"{scores[name]['unweighted_accuracy']:.1%}",
            f"{result['seconds'][f'train {name}']:.0f} s",
        )
        for name, system in _SYSTEMS.items()
    ]
    return [
        f"Synthetic corpus, 4 emotions, {clips} clips of speakers that training never met, chance {chance:.0%}; "
        f"{title(machine)}, torch {machine['torch']}:",
        "",
        *table(["system", "accuracy (95% interval)", "unweighted accuracy", "training"], rows),
        "",
        *_attention(result.get("attention", {})),
        f"One training step of that model there: {_quartiles(demo_steps['reference_ms'])} ms with reference operators, "
        f"{_quartiles(demo_steps['accelerated_ms'])} ms accelerated: {_quartiles(demo_steps['speedup'], 2)} times "
        f"faster (medians and quartiles). In {demo_steps['steps']} steps, the two losses on equal weights never "
        f"differ by more than {demo_steps['operator_difference']:.1e}. Left to itself training is chaotic: the two "
        f"runs part by up to {demo_steps['loss_difference']:.2g}, and so do two runs of the reference that start one "
        f"unit in the last place apart ({demo_steps['rounding_difference']:.2g}).",
    ]


def _attention(shares: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Where AM-FBP looks and listens; nothing of a demo of before this was measured."""
    if not shares:
        return []
    sound, faces = shares["am_fbp"]["audio"], shares["am_fbp"]["video"]
    return [
        f"In these clips the emotion shows in {sound['time']:.0%} of the time; there go {sound['attention']:.0%} of "
        f"AM-FBP's attention to sound and {faces['attention']:.0%} of that to faces: {sound['ratio']:.2f} and "
        f"{faces['ratio']:.2f} times their share.",
        "",
    ]


def _accuracy(score: dict[str, Any]) -> str:
    low, high = score["accuracy_interval"]
    return f"{score['accuracy']:.1%} ({low:.0%} to {high:.0%})"


def _quartiles(values: dict[str, float], digits: int = 0) -> str:
    lower, median, upper = (f"{values[k]:.{digits}f}" for k in ("lower", "median", "upper"))
    return f"{median} ({lower} to {upper})"


def device_results(device: Device, picture: bool) -> list[str]:
    """The training step and the main operators on one device; nothing where it measured neither."""
    body = [*_steps(device), *_operators(device)]
    if not body:
        return []
    shown = charts.speedup(device.run)
    if picture and shown:
        path = picture_path(device, shown[0]).as_posix()
        body += [f"![{shown[0].title}, {device.title}]({path})", ""]
    return [*body, f"From {_link(device.result)}: {of_commit(device.run.machine)}.", ""]


def _steps(device: Device) -> list[str]:
    lines = []
    for case in steps(device.run):
        for name in ours(case):
            faster = [
                f"{ratio_text(ratio)} times faster than {word}"
                for peer, word in (("eager", "eager PyTorch"), ("compile", "`torch.compile` of it"))
                if (ratio := against(case, name, peer))
            ]
            if faster:
                given = f" ({sizes(case)})" if case.sizes else ""
                lines += [
                    f"One training step of the full-size model{given}, {case.dtype}, {device.title}"
                    f"{_memory(case)}: {name} "
                    f"{milliseconds(case.contenders[name].seconds)} ms (median and quartiles), "
                    f"{' and '.join(faster)} (median, 10th to 90th percentile).",
                    "",
                ]
    return lines


def _memory(case: Case) -> str:
    how = STEPS.get(case.label)
    return f"; memory: {how}" if how else ""


def _operators(device: Device) -> list[str]:
    main = main_rows(device.run)
    if not main:
        return []
    columns = [(mode, peer) for mode in charts.MODES for peer in _PEERS]
    head = ["operator", "shape", "kernel"]
    head += [f"{charts.MODES[mode]}: against {peer}" for mode, peer in columns]
    rows = []
    for name, modes in main:
        case = next(iter(modes.values()))
        ratios = [_ratio(modes.get(mode), name, peer) for mode, peer in columns]
        rows.append((case.operator, case.label, name, *ratios))
    return [
        f"The operators alone, {case.dtype}, {device.title}, torch {device.run.machine.get('torch')}: times faster "
        "than eager PyTorch and `torch.compile` of it (median of interleaved pairs, 10th to 90th percentile in "
        "brackets; below 1 it is slower):",
        "",
        *table(head, rows),
        "",
    ]


def _ratio(case: Case | None, name: str, peer: str) -> str:
    if case is None or name not in case.contenders:
        return "left out" if case and name in case.left_out else ""
    return ratio_text(against(case, name, peer))
