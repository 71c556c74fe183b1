"""What the pages say can be done: tutorials from beginning to end, every other command as far as its help."""

import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from avemo.cli import main
from tests.docs.pages import ROOT, Block, blocks, pages

TUTORIALS = ("docs/tutorial.md", "docs/own-data.md")

# So that it takes seconds. What a page no longer says has no place here.
SMALLER = {
    "docs/tutorial.md": {
        "--clips 480": "--clips 24 --size 96",
        "--config small": "--config small --trainer.epochs 1",
    },
    "docs/own-data.md": {"--config small": "--config small --trainer.epochs 1"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_tutorial(folder: Path) -> None:
    _follow("docs/tutorial.md")
    assert list((folder / "predictions").iterdir())
    assert (folder / "runs/tutorial/best.safetensors").is_file()


@pytest.mark.slow
def test_data_of_your_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's folders and its table, with more clips of the same people."""
    page = "docs/own-data.md"
    first, table = (block for block in blocks(page) if not block.language)
    names = [Path(line).relative_to("mine") for line in first.commands]
    assert main(["synth", "--out", "corpus", "--clips", "16", "--size", "96"]) == 0
    clips = iter(sorted(Path("corpus/clips").rglob("*.mp4")))
    rows = [line.split(",") for line in table.commands]
    for number in range(4):
        for name in names:
            place = name.with_stem(f"{name.stem}{number}" if number else name.stem)
            Path("mine", place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(next(clips), Path("mine", place))  # FFmpeg goes by what is in it
            if number:
                rows.append([str(place), *next(row[1:] for row in rows if row[0] == str(name))])
    Path("mine/manifest.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    Path("mine/happy/empty.mp4").touch()  # one that cannot be used

    _follow(page)

    assert "happy/empty.mp4 empty file" in capsys.readouterr().out
    assert Path("runs/mine/best.safetensors").is_file()


def _follow(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for words in SMALLER[page]:
        assert words in text, f"{page} no longer says {words!r}"
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.why_not or not block.language:
            continue
        if block.language == "python":
            exec(compile(block.code, f"{page}:{block.line}", "exec"), names)
        else:
            for command in block.commands:
                _run(command, SMALLER[page])


def _run(command: str, smaller: dict[str, str]) -> None:
    for words, fewer in smaller.items():
        command = command.replace(words, fewer)
    program, *arguments = shlex.split(command, comments=True)
    if program == "avemo":
        assert main(arguments) == 0, command
    else:
        assert program == "python", command
        with pytest.MonkeyPatch.context() as patch:
            _as_program(arguments, patch)


def _as_program(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """What `python ARGUMENTS` does, in this process; any status but 0 is an error."""
    dash, module, *rest = arguments
    assert dash == "-m", arguments
    patch.setattr("sys.argv", [module, *rest])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = None
    except SystemExit as end:
        status = end.code
    assert not status, arguments


def test_python_of_the_readme() -> None:
    """Its blocks are one program, with a model where it says `model`."""
    from torch import nn

    names: dict[str, object] = {"model": nn.Sequential(nn.Conv2d(1, 2, 3), nn.LocalResponseNorm(2))}
    code = [block for block in blocks("README.md") if block.language == "python"]
    assert len(code) >= 3
    for block in code:
        exec(compile(block.code, f"README.md:{block.line}", "exec"), names)


COMMANDS = [
    pytest.param(command, id=f"{page}:{block.line + 1 + number}")
    for page in pages()
    for block in blocks(page)
    if block.language == "sh"
    for number, command in enumerate(block.commands)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program, and each option that it is given."""
    words = shlex.split(command, comments=True)
    programs = [word.rpartition("/bin/")[2] for word in words]  # some are named by their path
    for place, word in enumerate(programs):
        if word in HELP:
            options = [w for w in words[place + 1 :] if re.match(r"--\w", w)]
            HELP[word](words[place + 1 :], monkeypatch)
            text = capsys.readouterr().out
            assert [o for o in options if o.split("=")[0] not in text] == []
            return
    known = {"bench/gpu.sh": (ROOT / "bench/gpu.sh").is_file()}
    known |= dict.fromkeys(("pip", "python3", "curl"), True)
    assert any(known.get(word) for word in programs) or not words, command


def _help_of_avemo(words: list[str], _: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as end:
        main([words[0], "--help"])
    assert end.value.code == 0


def _help_of_module(words: list[str], patch: pytest.MonkeyPatch) -> None:
    _as_program([*_until_shell(words), "--help"], patch)


def _target(words: list[str], _: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{word}:", makefile, re.M) for word in words), words


def _until_shell(words: list[str]) -> list[str]:
    end = next((i for i, word in enumerate(words) if word in ("|", "||", "&&", ";")), len(words))
    return words[:end]


HELP: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "avemo": _help_of_avemo,
    "python": _help_of_module,
    "make": _target,
}


def test_blocks_are_found() -> None:
    print(f"{len(COMMANDS)} commands on {len(pages())} pages")
    assert len(COMMANDS) > 90
    assert len(blocks("docs/install.md")) == 3, "each with a mark of its own"
    by_page = {page: [b for b in blocks(page) if b.language == "sh"] for page in TUTORIALS}
    assert all(len(found) >= 3 for found in by_page.values())
    assert blocks("docs/tutorial.md")[0] == Block(
        10, "sh", "pip install .\n", "the test has it installed already"
    )
