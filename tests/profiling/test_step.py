"""`python -m profiling.step`: what it writes adds up, what is wrong it says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avemo.cli import find_config
from avemo.training.config import OptimizerConfig, TrainerConfig
from bench.records import Ceilings
from bench.step import STEPS
from profiling import step
from profiling.account import tree
from profiling.report import PICTURE, PROFILE, TABLES, TRACE, Profile, text
from profiling.trace import PHASES, Trace
from tests.avemo.tiny_cache import BINS, CLASSES, FACE_SIZE, write_cache

TINY = ["--config", "tiny", "--device", "cpu", "--steps", "2"]


@pytest.fixture(autouse=True, scope="module")
def ceilings() -> Iterator[None]:
    """Measuring real ones takes longer than all the rest."""
    found = Ceilings({"float32": 1e9}, 1e8, {"float32": "torch.mm"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step.ceilings, "measure", lambda *_: found)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the profile of a tiny step on the reference."""
    out = tmp_path_factory.mktemp("profile")
    assert step.main([*TINY, "--backend", "reference", "--out", str(out)]) == 0
    return out


def test_all_four_outputs_are_there_and_small(tiny: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in tiny.iterdir()}
    assert set(sizes) == {PROFILE, TABLES, PICTURE, TRACE}
    assert sizes[PICTURE] < 200_000
    assert sizes[TRACE] < 1_000_000


def test_tables_add_up_to_the_step(tiny: Path) -> None:
    account = Profile.load(tiny / PROFILE).account
    top = [b.row for b in tree(account.ranges) if b.depth == 0]
    for rows in (account.ranges, account.kinds, account.operations, top):
        assert sum(r.total_ms for r in rows) == pytest.approx(account.total_ms, rel=1e-4)
    durations = [s.duration / 1e3 for s in Trace.load(tiny / TRACE).steps]
    assert any(account.total_ms == pytest.approx(d, rel=1e-4) for d in durations)


def test_every_part_is_a_range(tiny: Path) -> None:
    rows = {r.name: r for r in Profile.load(tiny / PROFILE).account.ranges}
    parts = [
        "audio",
        "video",
        "audio.encoder",
        "video.encoder",
        "audio.attention",
        "video.attention",
    ]
    assert {*PHASES, "fusion", "audio.encoder.lrn1", *parts} <= set(rows)
    for name in (*parts[2:], "fusion", "loss"):
        assert rows[name].calls == 1
        assert rows[name].forward_ms > 0
        assert rows[name].backward_ms > 0
    assert rows["optimizer"].forward_ms == rows["optimizer"].backward_ms == 0
    # Nearly all of the backward leads back to the forward that caused it.
    backward = sum(r.backward_ms for r in rows.values())
    assert rows["backward"].backward_ms < backward / 2


def test_memory_begins_with_weights_state_and_batch(tiny: Path) -> None:
    memory = Profile.load(tiny / PROFILE).memory
    assert memory["peak_bytes"] > memory["start_bytes"] > 0
    names = {h["name"] for h in memory["at_backward"]}
    assert "audio.encoder.lrn1" in names  # it keeps something for its backward
    for moment in ("at_peak", "at_backward"):
        assert sum(h["bytes"] for h in memory[moment]) <= memory["peak_bytes"]
    assert sum(h["bytes"] for h in memory["at_peak"]) == memory["peak_bytes"]


def test_tables_are_those_of_the_file_and_tell_the_command(tiny: Path) -> None:
    profile = Profile.load(tiny / PROFILE)
    written = (tiny / TABLES).read_text("utf-8")
    assert written == text(profile) + "\n"
    assert profile.command.endswith("--config tiny --device cpu --steps 2 --backend reference")
    assert str(tiny) not in written
    assert "operators reference: " in written


def test_clips_of_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = write_cache(tmp_path / "cache")
    wanted = step.setting("tiny", cache, 4, {})
    assert (wanted.bins, wanted.face_size, wanted.classes) == (BINS, FACE_SIZE, len(CLASSES))
    batches = [next(wanted.batches) for _ in range(7)]  # more than the 18 clips give once
    assert [len(b.labels) for b in batches[:4]] == [4, 4, 4, 4]
    assert {len(b.labels) for b in batches} == {4, 2}


def test_a_profile_of_clips_of_a_cache(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "model: {audio: {channels: [3, 5, 6, 4, 7], stride: [1, 2], out_features: 9},"
        " video: {channels: [3, 6], out_features: 11}}\n"
        "data: {batch_size: 5}\n"
    )
    cache, out = write_cache(tmp_path / "cache"), tmp_path / "out"
    arguments = ["--config", str(config), "--cache", str(cache), "--steps", "1", "--out", str(out)]
    assert step.main(arguments) == 0
    profile = Profile.load(out / PROFILE)
    assert profile.settings["batch"] == 5
    assert profile.settings["input"] == "clips of a cache"
    rows = {r.name: r for r in profile.account.ranges}
    assert rows["data"].other_ms > 0


def test_an_external_profiler_gets_the_steps_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []

    class Counting(step.Range):
        def __init__(self, name: str) -> None:
            opened.append(name)
            super().__init__(name)

    monkeypatch.setattr(step, "Range", Counting)
    assert step.main([*TINY, "--external"]) == 0
    assert opened == 3 * ["data", "forward", "loss", "backward", "optimizer"]  # one to warm up
    assert not list(tmp_path.iterdir())


def test_a_compiled_model_is_one_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def stand_in(model: object) -> object:
        compiled.append(model)
        return model

    monkeypatch.setattr(step.torch, "compile", stand_in)
    assert step.main([*TINY, "--compile", "--out", str(tmp_path)]) == 0
    assert len(compiled) == 1
    profile = Profile.load(tmp_path / PROFILE)
    assert profile.title == "Training step, tiny model, accelerated, compiled"
    assert {r.name for r in profile.account.ranges} == {"step", *PHASES}


def test_the_full_size_is_the_one_that_is_benchmarked_and_that_of_the_configuration() -> None:
    full = step.configuration("full")
    assert full.model == STEPS["full"].model
    assert full.data.batch_size == STEPS["full"].batch["size"]
    assert full.optimizer == OptimizerConfig()
    assert full.trainer == TrainerConfig()
    assert step.configuration(find_config("full")).model == full.model


def test_sizes_of_the_noise_can_be_told() -> None:
    wanted = step.setting("tiny", None, 2, {"bins": 60, "video_frames": 3, "classes": 5})
    audio, audio_lengths, video, video_lengths, labels = next(wanted.batches)[:5]
    assert audio.shape == (2, 60, 40)
    assert video.shape == (2, 3, 16, 16)
    assert audio_lengths.tolist() == [40, 40]
    assert video_lengths.tolist() == [3, 3]
    assert int(labels.max()) < 5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_forward_runs_in_the_configurations_precision(precision: str, tmp_path: Path) -> None:
    wanted = step.setting("tiny", None, None, {})
    trainer = TrainerConfig(precision=precision)  # type: ignore[arg-type]
    wanted = replace(wanted, config=replace(wanted.config, trainer=trainer))
    taken, _, _ = step._prepare(wanted, "reference", torch.device("cpu"), compiled=False)
    with taken.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nonesuch"], "no configuration 'nonesuch'"),
        (["--config", "{here}/text.yaml"], "does not hold a configuration"),
        (["--config", "{here}/wrong.yaml"], "chanels"),
        (["--config", "{here}/half.yaml"], "expected '32-true' or 'bf16-mixed'"),
        (["--cache", "{here}/nonesuch"], "nonesuch"),
        (["--cache", "{here}", "--bins", "9"], "got bins and --cache"),
        ([*TINY, "--bins", "1"], "bins must leave"),
        ([*TINY, "--backend", "triton"], "backend 'triton' cannot be used"),
        (["--device", "cuda"], "PyTorch finds no GPU"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (tmp_path / "text.yaml").write_text("just words")
    (tmp_path / "wrong.yaml").write_text("model: {audio: {chanels: 3}}")
    (tmp_path / "half.yaml").write_text("trainer: {precision: 16-mixed}")
    assert step.main([a.format(here=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("python -m profiling.step: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "nonesuch"], "invalid choice: 'nonesuch'"),
        (["--steps", "0"], "expected a positive number, got '0'"),
        (["--threads", "two"], "expected a positive number, got 'two'"),
    ],
)
def test_wrong_arguments_are_told_with_the_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        step.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
