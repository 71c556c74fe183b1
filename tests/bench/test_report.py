"""What is published is what was measured, and a stale page or picture is noticed."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.records import Case, Run, Spread
from bench.report import report
from bench.report.figures import number, percent
from bench.report.page import page
from bench.report.readme import demo_table, updated
from bench.report.results import devices, found, goals, newest

from .made_up import DEMO, FAIRNESS, PAPER, case, changed, measurement, run, spread

README = """# A project

<!-- results: old -->
stale
<!-- end of results -->

More.
"""
EXPORT_PAGE = "# Export\n\n<!-- latencies: old -->\nstale\n<!-- end of latencies -->\n\nMore.\n"
SYSTEMS_PAGE = "# Systems\n\n<!-- speed -->\nstale\n<!-- end of speed -->\n\nMore.\n"
_SECONDS = {"median": 0.0042, "low": 0.0039, "high": 0.0047}
EXPORT = {
    "machine": DEMO["machine"] | {"date": "2026-01-02", "commit": "abc"},
    "threads": 2,
    "bytes": {"safetensors": 2**21, "onnx": 3 * 2**20, "pt2": 2**22, "aot": 2**23},
    "largest_difference": {"onnx": {"logits": 5e-7, "audio_attention": 1e-8}},
    "seconds": {"one clip": {"PyTorch, reference": _SECONDS, "onnxruntime": _SECONDS}},
}
SYSTEMS = {
    "machine": EXPORT["machine"],
    "goal": 1.3,
    "systems": {
        name: {
            "reference_s": {"median": 2.5}, "accelerated_s": {"median": 1.25},
            "speedup": {"median": speed, "low": 1.1, "high": 2.2}, "bound_by": {"aten::mm": 0.5},
        }
        for name, speed in (("am_fbp", 2.0), ("cnn_lstm", 1.2))
    },
}  # fmt: skip
COMPARISON_PAGE = """# Comparing

<!-- paper -->
stale
<!-- end of paper -->

Between.

<!-- fairness -->
stale
<!-- end of fairness -->
"""
RESULT = "bench-made-up-9000-2026-01-02.json"
GPU = {"device": "nvidia-h100", "gpu": "NVIDIA H100", "date": "2026-01-03"}


def _step() -> Case:
    ours = measurement(400.0, ratios={"eager": 1.6, "compile": 1.3})
    contenders = {"accelerated": ours, "eager": measurement(640.0), "compile": measurement(520.0)}
    made = case("training_step", "full", "training", sizes={"size": 16})
    return replace(made, contenders=contenders)


def _full() -> Run:
    """Something for every section."""
    curve = [
        case("fbp", f"B={B}", mode, curve="B", sizes={"B": B, "C": 256}, native=B / 8)
        for B in (1, 64)
        for mode in ("forward", "training")
    ]
    both = [
        case("fbp", label, mode) for label in ("clip", "vqa") for mode in ("forward", "training")
    ]
    left_out = replace(case("am_fbp"), left_out={"triton": "no GPU here\nat all"})
    return run(*both, left_out, *curve, case("fbp", "one", native=0.05), _step())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a demo and a README that is to be written."""
    return _repository(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose pages and pictures are written, which takes seconds: to be copied."""
    folder = _repository(tmp_path_factory.mktemp("written"))
    _write(folder, run(case(), case(mode="training")))
    return folder


def _repository(folder: Path) -> Path:
    results = folder / "bench" / "results"
    results.mkdir(parents=True)
    (folder / "README.md").write_text(README)
    (results / "demo-made-up-9000-2026-01-02.json").write_text(json.dumps(DEMO))
    (results / "export-made-up-9000-2026-01-02.json").write_text(json.dumps(EXPORT))
    (results / "systems-made-up-9000-2026-01-02.json").write_text(json.dumps(SYSTEMS))
    (results / "paper-made-up-9000-2026-01-02.json").write_text(json.dumps(PAPER))
    (results / "fairness-made-up-9000-2026-01-02.json").write_text(json.dumps(FAIRNESS))
    (folder / "docs").mkdir()
    (folder / "docs/comparison.md").write_text(COMPARISON_PAGE)
    (folder / "docs/systems.md").write_text(SYSTEMS_PAGE)
    (folder / "docs/export.md").write_text(EXPORT_PAGE)
    return folder


def _save(root: Path, made: Run, name: str = RESULT) -> None:
    made.save(root / "bench" / "results" / name)


def _page(root: Path, made: Run) -> str:
    """The page of a run, written nowhere."""
    _save(root, made)
    return page(devices(root), goals(root))


def _readme(root: Path, made: Run) -> str:
    """The README with the results of a run, written nowhere."""
    _save(root, made)
    return updated(README, newest(found(root, "demo")), devices(root), goals(root))


def _write(root: Path, made: Run) -> None:
    """Writes everything about a run."""
    _save(root, made)
    assert report(check=False, root=root) == 0


def _section(page: str, title: str) -> list[str]:
    """The lines of a section of the page."""
    lines = page.splitlines()
    start = lines.index(title)
    level = title.split(" ")[0]
    after = [i for i, x in enumerate(lines) if i > start and x.startswith("#")]
    end = next((i for i in after if len(lines[i].split(" ")[0]) <= len(level)), len(lines))
    return lines[start + 1 : end]


def test_the_figures_of_a_row(root: Path) -> None:
    """2 ms for 0.1 GFLOP and 10 MB: 50 GFLOP/s, 5 GB/s; the floor of 0.5 ms is a quarter of it."""
    text = _page(root, run(case(), case(mode="training")))
    lines = _section(text, "#### fbp clip")
    assert lines[1] == "B = 32, C = 256."
    assert lines[3] == (
        "| dtype | mode | contender | ms | against eager | against compile | against products "
        "| GFLOP/s | GB/s | of floor | peak MiB | kept MiB |"
    )
    assert lines[5] == (
        "| float32 | forward | native | 2.00 (1.90 to 2.10) | 1.50 (1.35 to 1.65) "
        "| 1.25 (1.12 to 1.38) | 0.80 (0.72 to 0.88) | 50.0 | 5.00 | 25% | 3.00 | - |"
    )
    assert lines[6] == (
        "| float32 | forward | eager | 3.00 (2.85 to 3.15) | - | - | - | 33.3 | 3.33 | 17% | 6.00 | - |"
    )
    assert lines[9].endswith("| 50.0 | 5.00 | 25% | 3.00 | 1.00 |")


def test_a_copy_does_none_of_the_arithmetic(root: Path) -> None:
    made = run(case("local_response_norm", "conv1", ratios={"eager": 9.0, "copy": 0.4}))
    copy = _section(_page(root, made), "#### local_response_norm conv1")[-1]
    assert (
        copy
        == "| float32 | forward | copy | 0.800 (0.760 to 0.840) | - | - | - | 12.5 | 62% | 6.00 |"
    )


def test_models_that_nobody_trains_are_no_result(root: Path) -> None:
    tiny = replace(_step(), label="tiny")
    assert "### Training step" not in _page(root, run(tiny))
    assert "full-size" not in _readme(root, run(tiny))


def test_the_machine_and_its_ceilings(root: Path) -> None:
    lines = _section(_page(root, run(case())), "### Machine")
    assert "| threads | 2 |" in lines
    assert "| instruction set | avx2 |" in lines
    assert not any("gpu" in line or "triton" in line for line in lines)
    assert "| float32 (2048 x 2048 x 2048) | 200 GFLOP/s |" in lines
    assert "| large copy, read and written | 20.0 GB/s |" in lines


def test_the_losing_rows_are_listed_the_worst_first(root: Path) -> None:
    uncertain = Spread(0.8, 0.9, 0.95, 1.0, 1.05)
    made = run(
        case(ratios={"eager": 1.5, "compile": 0.9, "products": 1.0}),
        case("trunk_fbp", ratios={"eager": uncertain, "compile": 1.2}),
        case("fbp", "B=1", curve="B", ratios={"products": 0.5, "compile": spread(math.nan)}),
        case("local_response_norm", "conv1", ratios={"eager": 9.0, "copy": 0.4}),
    )
    lines = _section(_page(root, made), "### Where ours loses")
    assert lines[1].startswith("Of 8 ratios to a peer, 3 are below 1; 2 of them with their whole")
    assert [line for line in lines if "native" in line] == [
        "| fbp | B=1 | float32 | forward | native | products | 0.50 (0.45 to 0.55) | yes |",
        "| fbp | clip | float32 | forward | native | compile | 0.90 (0.81 to 0.99) | yes |",
        "| trunk_fbp | clip | float32 | forward | native | eager | 0.95 (0.80 to 1.05) | within the spread |",
    ]


def test_what_has_nothing_to_show_is_left_out(root: Path) -> None:
    text = _page(root, run(case()))
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert titles == [
        "### Machine",
        "### Speed",
        "### Where ours loses",
        "### Roofline",
        "### Memory",
        "### Operators",
    ]
    titles = [line for line in _page(root, _full()).splitlines() if line.startswith("### ")]
    assert titles == [
        "### Machine",
        "### Training step",
        "### Speed",
        "### Where ours loses",
        "### Roofline",
        "### Memory",
        "### Cost against size",
        "### Cost of a call",
        "### Operators",
        "### Curves",
        "### Left out",
    ]


def test_curves_calls_and_what_was_left_out(root: Path) -> None:
    text = _page(root, _full())
    curves = _section(text, "#### fbp against B, float32")
    assert curves[1] == "C = 256."
    assert curves[5].startswith("| B=1 | forward | native | 0.125 (0.119 to 0.131) | 1.50 (1.35 ")
    assert curves[6].startswith("| B=64 | forward | native | 8.00 (7.60 to 8.40) | ")
    calls = _section(text, "### Cost of a call")
    assert (
        "| fbp | float32 | forward | 50.0 (47.5 to 52.5) | 75.0 (71.2 to 78.8) | 62.5 (59.4 to 65.6) "
        "| 40.0 (38.0 to 42.0) |" in calls
    )
    assert "| triton | no GPU here | am_fbp clip float32 forward |" in text
    assert "#### fbp one" not in text


def test_figures_that_are_no_numbers(root: Path) -> None:
    broken = changed(case(), "native", seconds=spread(math.nan), ratios={"eager": spread(math.inf)})
    made = run(broken, case("am_fbp"))
    lines = _section(_page(root, made), "#### fbp clip")
    assert lines[5].startswith("| float32 | forward | native | - (- to -) | - |")
    _write(root, made)
    assert report(check=True, root=root) == 0


def test_every_picture_is_drawn_and_shown(root: Path) -> None:
    _write(root, _full())
    text = (root / "docs" / "benchmarks.md").read_text("utf-8")
    drawn = {path.name for path in (root / "docs/benchmarks/made-up-9000").iterdir()}
    assert drawn == {
        "speedup.svg",
        "speedup-float32-native.svg",
        "training-step.svg",
        "roofline-float32.svg",
        "memory-float32.svg",
        "cost-B-float32.svg",
        "host.svg",
    }
    assert all(f"](benchmarks/made-up-9000/{name})" in text for name in drawn)


def test_the_readme(root: Path) -> None:
    readme = _readme(root, _full())
    assert readme.startswith("# A project\n\n<!-- results")
    assert readme.endswith("<!-- end of results -->\n\nMore.\n")
    assert "stale" not in readme
    assert "| AM-FBP, both streams | 75.0% (66% to 82%) | 70.0% | 10 s |" in readme
    assert (
        "(size = 16), float32, Made Up 9000 (AVX2), 2 threads; memory: PyTorch's default: accelerated 400 "
        "(380 to 420) ms "
        "(median and quartiles), 1.60 (1.44 to 1.76) times faster than eager PyTorch and 1.30 (1.17 to 1.43) times "
        "faster than" in readme
    )
    assert (
        "| fbp | clip | native | 1.50 (1.35 to 1.65) | 1.25 (1.12 to 1.38) | 1.50 (1.35 to 1.65) "
        "| 1.25 (1.12 to 1.38) |" in readme
    )
    assert "| vqa |" not in readme
    assert "(docs/benchmarks/made-up-9000/speedup.svg)" in readme
    assert "(docs/benchmarks.md)" in readme
    assert f"(bench/results/{RESULT})" in readme


def test_the_fastest_of_ours_stands_for_a_case_in_the_readme(root: Path) -> None:
    quick = measurement(1.0, ratios={"eager": 3.0, "eager graph": 0.5})
    graph = measurement(0.5, ratios={"eager": 6.0, "eager graph": 1.0})
    made = [
        replace(c, contenders=c.contenders | {"triton": quick, "triton graph": graph})
        for c in (case(), case(mode="training"))
    ]
    readme = _readme(root, run(*made))
    assert "| fbp | clip | triton | 3.00 (2.70 to 3.30) | 3.00 (2.70 to 3.30) |" in readme


def test_who_is_in_the_most_cases_stands_for_them_in_the_readme(root: Path) -> None:
    forward = case()
    quick = measurement(0.1, ratios={"eager": 30.0})
    forward = replace(forward, contenders=forward.contenders | {"triton": quick})
    readme = _readme(root, run(forward, case(mode="training")))
    assert "| fbp | clip | native | 1.50 (1.35 to 1.65) |" in readme
    assert "| fbp | clip | triton |" not in readme


def test_a_kernel_that_was_left_out_is_not_passed_over_in_the_readme(root: Path) -> None:
    training = case(mode="training")
    peers = {name: m for name, m in training.contenders.items() if name != "native"}
    wrong = replace(training, contenders=peers, left_out={"native": "wrong: off by 3"})
    readme = _readme(root, run(case(), wrong))
    assert (
        "| fbp | clip | native | 1.50 (1.35 to 1.65) | 1.25 (1.12 to 1.38) | left out | left out |"
        in readme
    )


def test_a_changed_demo_changes_its_table() -> None:
    scores = DEMO["scores"] | {"am_fbp": DEMO["scores"]["am_fbp"] | {"accuracy": 0.1234}}
    text = "\n".join(demo_table(DEMO | {"scores": scores}))
    assert "| AM-FBP, both streams | 12.3% (66% to 82%) | 70.0% | 10 s |" in text
    seconds = [row.split("|")[-2].strip() for row in text.splitlines() if " only |" in row]
    assert seconds == ["5 s", "6 s"], "of audio and video"
    assert "50 (48 to 52) ms accelerated: 1.30 (1.25 to 1.35) times faster" in text
    assert (
        "there go 82% of AM-FBP's attention to sound and 77% of that to faces: 1.60 and 1.50 times their share"
        in text
    )
    assert "attention" not in "\n".join(
        demo_table({k: v for k, v in DEMO.items() if k != "attention"})
    )


def test_several_devices(root: Path) -> None:
    _save(root, run(case(native=4.0), **GPU), "bench-nvidia-h100-2026-01-03.json")
    with_a_gpu = run(case(native=3.0), gpu="NVIDIA H100", device="amd-epyc", processor="AMD EPYC")
    _save(root, with_a_gpu, "bench-amd-epyc-2026-01-01.json")
    text = _page(root, run(case()))
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## How to read the figures",
        "## NVIDIA H100",
        "## AMD EPYC (AVX2), 2 threads",
        "## Made Up 9000 (AVX2), 2 threads",
    ]
    assert "- [AMD EPYC (AVX2), 2 threads](#amd-epyc-avx2-2-threads)" in text
    assert "| native | 4.00 (3.80" in "\n".join(_section(text, "## NVIDIA H100"))
    assert "| native | 2.00 (1.90" in "\n".join(_section(text, "## Made Up 9000 (AVX2), 2 threads"))
    readme = _readme(root, run(case()))
    assert readme.count("The operators alone") == 3
    assert readme.count("speedup.svg") == 1


def test_the_newest_result_of_a_device_counts(root: Path) -> None:
    _save(root, run(case(native=7.0)), "bench-made-up-9000-2025-12-31.json")
    _save(root, run(case(native=8.0)), "bench-made-up-9000-2026-02-01-one-thread.json")
    text = _page(root, run(case(native=2.0)))
    assert "| native | 2.00 (1.90" in text
    assert "| native | 7.00" not in text
    assert "| native | 8.00" not in text


def test_repeats_of_the_day_say_whether_they_agree(root: Path) -> None:
    same, other = case(), case(ratios={"eager": 1.0, "compile": 1.25, "products": 0.8})
    _save(root, run(same, case("am_fbp")), "bench-made-up-9000-2026-01-02-b.json")
    _save(root, run(other, case("am_fbp")), "bench-made-up-9000-2026-01-02-c.json")
    _save(root, run(same, threads=1), "bench-made-up-9000-2026-01-02-d.json")
    text = _page(root, run(same, case("am_fbp")))
    b, c, d = (line for line in _section(text, "### Repeated") if line)
    assert "2026-01-02-b.json): 2 of 2 speed ratios agree" in b
    assert b.endswith("flags 0.")
    assert "1 of 2 speed ratios agree" in c
    assert c.endswith("flags 1.")
    assert "threads 2 and 1" in d


def test_what_was_written_passes_the_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(root, _full())
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert report(check=True, root=root) == 0
    assert capsys.readouterr().err == ""
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("README.md", "1.50 (1.35 to 1.65)", "2.50 (1.35 to 1.65)"),
        ("README.md", "| 75.0% (", "| 95.0% ("),
        (
            "docs/export.md",
            "| onnxruntime | 3.0 MiB | 4.2 (3.9 to 4.7) |",
            "| onnxruntime | 3.0 MiB | 2.2 |",
        ),
        (
            "docs/systems.md",
            "| `am_fbp` | 2.00 (1.10 to 2.20) | 2.50 | 1.25 | `aten::mm` 50% |",
            "| `am_fbp` | 3.00 (1.10 to 2.20) | 2.50 | 1.25 | `aten::mm` 50% |",
        ),
        (
            "docs/systems.md",
            "| `cnn_lstm` | 1.20 (1.10 to 2.20), **missed 1.30** |",
            "| `cnn_lstm` | 1.20 (1.10 to 2.20) |",
        ),
        (
            "docs/comparison.md",
            "| AM-FBP | 64.17% | 0.001 | 80.0% (70.0% to 90.0%) |",
            "| AM-FBP | 64.17% | 0.001 | 90.0% (70.0% to 90.0%) |",
        ),
        (
            "docs/comparison.md",
            "| `m_fbp` | +1.4 (p 0.6, 0.7) | +1.4 (p 0.6, 0.7) |",
            "| `m_fbp` | +1.4 (p 0.6, 0.7) | +2.4 (p 0.6, 0.7) |",
        ),
        ("docs/benchmarks.md", "| 50.0 | 5.00 | 25% |", "| 99.0 | 5.00 | 25% |"),
    ],
)
def test_a_changed_figure_is_caught(
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    old: str,
    new: str,
) -> None:
    root = shutil.copytree(written, tmp_path / "copy")
    text = (root / path).read_text("utf-8")
    assert old in text
    (root / path).write_text(text.replace(old, new, 1))
    assert report(check=True, root=root) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"{path} is not what the results say")
    assert any(line.startswith("-") and new in line for line in message.splitlines())
    assert any(line.startswith("+") and old in line for line in message.splitlines())
    assert (root / path).read_text("utf-8") == text.replace(old, new, 1)


def test_pictures_that_are_missing_stale_or_no_longer_shown_are_caught(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(root, run(case(native=3.0)))
    folder = root / "docs" / "benchmarks" / "made-up-9000"
    stale = (folder / "roofline-float32.svg").read_bytes()
    _write(root, run(case()))
    (folder / "roofline-float32.svg").write_bytes(stale)
    (folder / "speedup.svg").unlink()
    (folder / "host.svg").write_text("<svg/>")
    assert report(check=True, root=root) == 1
    where = "docs/benchmarks/made-up-9000"
    assert capsys.readouterr().err.splitlines() == [
        f"{where}/speedup.svg is missing",
        f"{where}/roofline-float32.svg was not drawn from {RESULT}",
        f"{where}/host.svg is no longer shown",
        "run python -m bench report",
    ]
    assert report(check=False, root=root) == 0
    assert not (folder / "host.svg").exists()
    assert report(check=True, root=root) == 0


def test_a_new_result_makes_everything_stale(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(root, run(case()))
    _save(root, run(case(native=2.2)))
    assert report(check=True, root=root) == 1
    message = capsys.readouterr().err
    assert "docs/benchmarks.md is not what" in message
    assert "speedup.svg was not drawn from" in message


def test_a_missing_result_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(check=False, root=root) == 1
    assert "no result bench-DEVICE-DATE.json in bench/results" in capsys.readouterr().err
    _save(root, run(case()))
    next((root / "bench" / "results").glob("demo-*")).unlink()
    assert report(check=True, root=root) == 1
    assert "no result demo-DEVICE-DATE.json" in capsys.readouterr().err
    assert (root / "README.md").read_text() == README


def test_a_result_of_another_version_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "bench" / "results" / RESULT).write_text('{"version": 0}')
    assert report(check=False, root=root) == 1
    assert f"{RESULT} is not a result" in capsys.readouterr().err


def test_a_readme_without_its_section_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(root, run(case()))
    (root / "README.md").write_text("# A project\n")
    assert report(check=False, root=root) == 1
    assert "README.md has no section" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,230"),
        (123.4, "123"),
        (12.34, "12.3"),
        (0.01234, "0.0123"),
        (-5.678, "-5.68"),
        (None, "-"),
        (math.inf, "-"),
        (math.nan, "-"),
    ],
)
def test_numbers_have_three_digits(value: Any, text: str) -> None:
    assert number(value) == text


def test_percent() -> None:
    assert [percent(x) for x in (1.043, 0.5, 0.012, 0.0)] == ["104%", "50%", "1.2%", "0%"]


def test_the_check_needs_neither_torch_nor_matplotlib(root: Path) -> None:
    _write(root, _full())
    code = (
        "import sys, pathlib; from bench.report import report;"
        "assert report(check=True, root=pathlib.Path(sys.argv[1])) == 0;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib')))"
    )
    command = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0


def test_figures_say_of_which_commit_they_are(root: Path) -> None:
    clean = _page(root, run(case()))
    assert f"{RESULT}): figures of commit 0123456789, measured 2026-01-02." in clean
    assert "figures of commit 0123456789, measured 2026-01-02." in _readme(root, run(case()))
    changed = _page(root, run(case(), commit="0123456789+"))
    assert "figures of commit 0123456789, with changes, measured" in changed
    assert "measured outside a checkout" in _page(root, run(case(), commit=""))


def test_what_only_another_run_of_the_day_measured_is_shown_with_its_commit(root: Path) -> None:
    other = run(
        case(), case(mode="training", native=5.0, left_out={"triton": "no GPU"}), commit="4567+"
    )
    _save(root, other, "bench-made-up-9000-2026-01-02-training.json")
    lines = _section(_page(root, run(case())), "### Measured besides")
    assert lines[1].endswith(
        "-training.json): figures of commit 4567, with changes, measured 2026-01-02."
    )
    assert "#### fbp clip, from training" in lines
    assert any(
        line.startswith("| float32 | forward and backward | native | 5.00 ") for line in lines
    )
    assert not any(line.startswith("| float32 | forward | ") for line in lines)
    assert "| triton | no GPU | fbp clip float32 training |" in lines
    _save(root, run(case(mode="training")), "bench-made-up-9000-2026-01-02-training.json")
    assert "### Repeated" not in _page(root, run(case()))  # nothing is in both


def test_the_readme_shows_the_picture_of_the_device_that_measured_most(root: Path) -> None:
    _save(root, run(case(), **GPU), "bench-nvidia-h100-2026-01-03.json")
    readme = _readme(root, run(case(), case("am_fbp")))
    assert readme.count("speedup.svg") == 1
    assert "(docs/benchmarks/made-up-9000/speedup.svg)" in readme
