"""Writes the README's figures from committed result files: `python -m bench.readme [--check]`."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
_BEGIN, _END = "<!-- results", "<!-- end of results -->"
_SYSTEMS = {"am_fbp": "AM-FBP, both streams", "audio": "audio only", "video": "video only"}


def newest(kind: str) -> Path:
    """The newest committed result of a kind; names end in the date.

    Args:
        kind: how the file's name begins, such as "demo".

    Raises:
        FileNotFoundError: there is none.
    """
    pattern = re.compile(rf"{kind}-.*-(\d{{4}}-\d{{2}}-\d{{2}})")
    dated = [
        (match[1], path)
        for path in RESULTS.glob("*.json")
        if (match := pattern.fullmatch(path.stem))
    ]
    found = [path for _, path in sorted(dated)]
    if not found:
        raise FileNotFoundError(f"no file {kind}-*.json with a date at its end in {RESULTS}")
    return found[-1]


def demo_table(result: dict[str, Any]) -> list[str]:
    """Recognition of held-out speakers, and the training step with and without the kernels."""
    scores = result["scores"]
    clips, chance = scores["am_fbp"]["clips"], scores["am_fbp"]["chance"]
    machine, steps = result["machine"], result["steps"]
    lines = [
        f"Synthetic corpus, 4 emotions, {clips} clips of speakers that training never met, chance {chance:.0%}; "
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}:",
        "",
        "| system | accuracy | unweighted accuracy | training |",
        "|---|---|---|---|",
    ]
    for name, system in _SYSTEMS.items():
        score, seconds = scores[name], result["seconds"][f"train {name}"]
        lines.append(
            f"| {system} | {score['accuracy']:.1%} | {score['unweighted_accuracy']:.1%} | {seconds:.0f} s |"
        )
    return [
        *lines,
        "",
        f"One training step of that model: {_spread(steps['reference_ms'])} ms with reference operators, "
        f"{_spread(steps['accelerated_ms'])} ms accelerated: {_spread(steps['speedup'], 2)} times faster "
        f"(medians and quartiles). In {steps['steps']} steps, the two losses on equal weights never differ by more "
        f"than {steps['operator_difference']:.1e}. Left to itself training is chaotic: the two runs part by up to "
        f"{steps['loss_difference']:.2g}, and so do two runs of the reference that start one unit in the last place "
        f"apart ({steps['rounding_difference']:.2g}).",
    ]


def kernel_table(result: dict[str, Any]) -> list[str]:
    """How much faster the native kernels are than eager PyTorch."""
    machine = result["machine"]
    lines = [
        f"The native kernels against eager PyTorch, float32, {machine['processor']}, {machine['threads']} threads "
        f"(times faster: median of interleaved pairs, quartiles in brackets):",
        "",
        "| case | forward | forward + backward |",
        "|---|---|---|",
    ]
    rows: dict[str, dict[str, str]] = {}
    for name, contenders in result["microseconds"].items():
        case, mode = name.rsplit(" ", 1)
        low, high = contenders["eager"]["ratio_quartiles"]
        cell = f"{contenders['eager']['ratio']:.2f} ({low:.2f} to {high:.2f})"
        rows.setdefault(case, {})[mode] = cell
    return [
        *lines,
        *(f"| {c} | {r['forward']} | {r['forward+backward']} |" for c, r in rows.items()),
    ]


def _spread(quartiles: dict[str, float], digits: int = 0) -> str:
    lower, median, upper = (f"{quartiles[k]:.{digits}f}" for k in ("lower", "median", "upper"))
    return f"{median} ({lower} to {upper})"


def section() -> str:
    """The README's results, between its two markers."""
    parts = [f"{_BEGIN}: written by `python -m bench.readme`, from the files that it names -->"]
    for kind, table in (("demo", demo_table), ("cpu", kernel_table)):
        path = newest(kind)
        parts += ["", *table(json.loads(path.read_text("utf-8")))]
        parts += ["", f"From [{path.name}]({path.relative_to(ROOT).as_posix()})."]
    return "\n".join([*parts, _END])


def updated(readme: str) -> str:
    """The README with its results section as the files have it."""
    begin, end = readme.index(_BEGIN), readme.index(_END) + len(_END)
    return readme[:begin] + section() + readme[end:]


def main() -> int:
    """Writes the README, or with --check says whether it is what would be written."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if it would")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    old = path.read_text("utf-8")
    new = updated(old)
    if check and new != old:
        print(
            "README.md is not what the result files say; run python -m bench.readme",
            file=sys.stderr,
        )
        return 1
    if not check:
        path.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
