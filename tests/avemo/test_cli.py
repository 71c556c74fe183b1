"""The command line: quick help, arguments from signatures, and errors in one line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avemo import cli
from tests.avemo.tiny_cache import write_cache

TINY = [
    "--model.audio.channels=[2,2,2,2,2]",
    "--model.audio.stride=[1,2]",
    "--model.audio.out_features=4",
    "--model.video.channels=[2,2]",
    "--model.video.out_features=4",
    "--trainer.epochs=1",
    "--trainer.accelerator=cpu",
]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from avemo.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'lightning', 'numpy', 'av', 'cv2', 'librosa', 'jsonargparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = os.times()  # of the processor, whatever else the machine does
    assert after.children_user - before.children_user < 2, "a fraction of a second"
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_from_its_docstring(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: avemo {name}")
    assert "options:" in text


def test_arguments_follow_from_the_signature() -> None:
    def command(first: Path, others: list[Path], *, flag: bool = False, number: int = 3) -> Any:
        """Does something.

        Args:
            first: one.
            others: more.
            flag: on or off.
            number: how many.
        """
        return first, others, flag, number

    def call(*arguments: str) -> Any:
        return cli._call(command, "x", list(arguments), False)

    assert call("a", "b", "c") == (Path("a"), [Path("b"), Path("c")], False, 3)
    assert call("a", "b", "--flag", "--number", "5") == (Path("a"), [Path("b")], True, 5)
    assert call("a", "b", "--flag=false") == (Path("a"), [Path("b")], False, 3)
    with pytest.raises(ValueError, match=r"required: others \(usage: avemo x FIRST OTHERS"):
        call("a")
    with pytest.raises(ValueError, match="number must be int, got 'many'"):
        call("a", "b", "--number", "many")


def test_the_output_folder_is_told_by_name() -> None:
    def command(first: Path, out: Path, *, number: int = 3) -> Any:
        """Does something."""
        return first, out, number

    assert cli._call(command, "x", ["a", "--out", "b"], False) == (Path("a"), Path("b"), 3)
    with pytest.raises(ValueError, match="unrecognized arguments: b"):
        cli._call(command, "x", ["a", "b"], False)


def test_what_is_told_by_its_place_may_be_told_by_its_name() -> None:
    def command(first: str, second: Path, *, out: Path) -> Any:
        """Does something."""
        return first, second, out

    expected = "a", Path("b"), Path("c")
    for arguments in (
        ["a", "b", "--out", "c"],
        ["a", "--second", "b", "--out", "c"],
        ["--second=b", "--out", "c", "a"],
        ["--out", "c", "--first", "a", "--second", "b"],
    ):
        assert cli._call(command, "x", arguments, False) == expected
    with pytest.raises(ValueError, match="unrecognized arguments: b"):
        cli._call(command, "x", ["a", "b", "--second", "b", "--out", "c"], False)


def test_print_config_shows_all_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    with pytest.raises(SystemExit) as end:
        cli.run(["train", "--config", "small", "--seed", "9", "--print_config"])
    assert end.value.code == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["seed"] == 9
    assert values["optimizer"].keys() >= {"learning_rate", "weight_decay", "gradient_clip"}
    assert values["model"]["name"] == "am_fbp"


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, out = write_cache(tmp_path / "cache"), tmp_path / "run"
    train = ["train", "--config", "small", "--data.cache", str(cache), "--out", str(out), *TINY]
    assert cli.main(train) == 0
    assert cli.main([*train, "--resume"]) == 0
    assert cli.main(["evaluate", str(out / "best.safetensors"), str(cache)]) == 0
    assert "unweighted accuracy" in capsys.readouterr().out
    # What was trained can be trained again from the configuration that it left.
    again = ["train", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]
    assert cli.main(again) == 0
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "there is no command 'dance'; expected one of synth, prepare, "),
        (["evaluate", "no.safetensors", "cache"], "no checkpoint at no.safetensors"),
        (["train", "--config", "huge"], "no configuration 'huge': .*(full, small), and no system"),
        (["train", "--data.cache", "nowhere"], "no finished cache in nowhere"),
        (["prepare", "no.csv", ".", "--out", "cache"], "no.csv"),
        (["prepare", "manifest", ".", "--out", "cache"], "manifest.csv"),
        (["prepare", "iemocat", ".", "--out", "cache"], "no corpus 'iemocat'; expected one of "),
        (["synth", "--out", "corpus", "--clips", "1"], "clips=1: expected at least 12"),
        (["synth", "--out", "a file"], "a file holds files that are no corpus"),
        (["fairness", "--out", "a file"], "a file: must be a folder, and is none"),
        (["evaluate"], "checkpoint, cache (usage: avemo evaluate CHECKPOINT CACHE [options]; more"),
        (["evaluate", "a", "b", "c"], "unrecognized arguments: c (usage"),
        (["synth", "--out", "a", "--classes", "5"], "classes must be one of 4, 7, got '5' (usage"),
        (
            ["predict", "a", "b", "--window", "wide"],
            "window must be float or null, got 'wide' (usage",
        ),
    ],
)
def test_errors_of_the_user_take_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("avemo: error: ")
    assert re.search(re.sub(r"[()\[\]]", r"\\\g<0>", message), line)


def test_errors_of_training_take_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    """There Lightning is not imported before the command, and says nothing of itself all the same."""
    command = [sys.executable, "-m", "avemo", "train", "--data.cache", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("avemo: error: no finished cache in nowhere")


@pytest.mark.parametrize("words", [["systems"], ["--version"]])
def test_whoever_reads_may_go(words: list[str]) -> None:
    """Nothing is said of it, whether little is printed or more than a pipe holds."""
    command = [sys.executable, "-c", "from avemo.cli import console; raise SystemExit(console())"]
    reads, writes = os.pipe()
    os.close(reads)  # before the command starts: gone afterwards may be gone too late
    try:
        done = subprocess.run([*command, *words], stdout=writes, stderr=subprocess.PIPE)
    finally:
        os.close(writes)
    assert (done.stderr, done.returncode) == (b"", 141)


def test_debug_lets_the_error_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        cli.main(["evaluate", "no.safetensors", "cache", "--debug"])
    monkeypatch.setenv("AVEMO_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["evaluate", "no.safetensors", "cache"])


def test_bugs_are_not_dressed_up_as_errors_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["demo"])


def test_no_command_is_an_error_and_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert "commands:" in capsys.readouterr().out
