"""The command line `avemo`. A command is a typed function and one line in `COMMANDS`."""

import atexit
import contextlib
import errno
import importlib
import inspect
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_origin

from avemo.imports import in_a_process_of_its_own, without_collection

_USAGE_ERROR = 2
_MAIN = threading.main_thread()


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        target: "module:function", imported when the command is called. The function's signature is
            the command's: what is required and not keyword-only is positional, the rest are
            options; the docstring is the help. As in Python, what is positional may also be given by
            its name.
        summary: its line in `avemo --help`.
        configurable: takes `--config FILE`, also by the name of a configuration that comes with
            the package, such as `small`.
    """

    target: str
    summary: str
    configurable: bool = False


COMMANDS = {
    "synth": Command("avemo.synth:synthesize", "write a labelled corpus of synthetic clips"),
    "prepare": Command("avemo.data.prepare:prepare", "turn media files into a training cache"),
    "folds": Command("avemo.data.folds:folds", "show the folds that a cache can be trained in"),
    "shards": Command("avemo.data.shards:shards", "write a cache as shards for streaming"),
    "train": Command("avemo.training.train:train", "train a model on a cache", configurable=True),
    "evaluate": Command("avemo.evaluation.evaluate:evaluate", "score a model on a cache"),
    "compare": Command("avemo.evaluation.compare:compare", "compare systems on the same clips"),
    "predict": Command("avemo.evaluation.predict:predict", "name the emotion in media files"),
    "ensemble": Command("avemo.training.ensemble:ensemble", "make one model of several"),
    "pretrain-face": Command(
        "avemo.training.pretrain_face:pretrain_face",
        "train the face encoder alone",
        configurable=True,
    ),
    "pretrain-landmarks": Command(
        "avemo.training.pretrain_landmarks:pretrain_landmarks",
        "train the network that finds landmarks",
        configurable=True,
    ),
    "export": Command("avemo.exporting:export", "write a model for programs without avemo"),
    "systems": Command(
        "avemo.systems:list_systems", "list the systems that can be trained by name"
    ),
    "paper": Command("avemo.paper:paper", "make the paper's tables and figures on a cache"),
    "fairness": Command("avemo.fairness:fairness", "test the synthetic corpus by its controls"),
    "serve": Command("avemo.serve.server:serve", "serve a page and an API that name emotions"),
    "demo": Command("avemo.demo:demo", "run all of the above on a small synthetic corpus"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; what the user can put right is told in one line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, or what the command's result has as its `status`, or 2 after an error of usage, or 141
        where nobody reads on.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name that the terminal cannot show ends nothing
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("AVEMO_DEBUG"))
    arguments = [a for a in arguments if a != "--debug"]
    try:
        result = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        with contextlib.suppress(OSError, ValueError):  # what is still to be flushed goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, ValueError, ArithmeticError) as error:
        if debug:
            raise
        print(f"avemo: error: {_first_line(error)}", file=sys.stderr)
        return _USAGE_ERROR
    return int(getattr(result, "status", 0))


def console() -> int:
    """The program `avemo`: its command line in a process of its own.

    To take PyTorch apart at the end, object by object, takes a tenth of a short run and is for nothing:
    what is registered to be done at the exit is done, and the process ends.
    """
    in_a_process_of_its_own()
    status = main()
    if all(thread.daemon for thread in threading.enumerate() if thread is not _MAIN):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def run(arguments: Sequence[str]) -> Any:
    """Runs one command and returns what its function returns.

    Args:
        arguments: the command's name and its arguments.

    Raises:
        SystemExit: help was asked for, or there is no command.
        ValueError: the arguments are wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0 if arguments else _USAGE_ERROR)
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(version("avemo"))
        raise SystemExit(0)
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name!r}; expected one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    module, function = command.target.split(":")
    with without_collection():
        target = getattr(importlib.import_module(module), function)
    return _call(target, name, rest, command.configurable)


def _call(target: Callable[..., Any], name: str, arguments: list[str], configurable: bool) -> Any:
    """Parses arguments by a function's signature and calls it."""
    from jsonargparse import ArgumentParser

    parameters = inspect.signature(target, eval_str=True).parameters.values()
    placed = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    inputs = [p for p in placed if p.name != "out"]
    usage = " ".join([f"avemo {name}", *map(_placeholder, inputs), "[options]"])

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(
                f"{_told(message)} (usage: {usage}; more: avemo {name} --help)"
            ) from ex

    parser = Parser(prog=f"avemo {name}", usage=usage, description=_summary(target))
    if configurable:
        parser.add_argument("--config", action="config", help="YAML file, or the name of ours")
        arguments = _resolve_configs(arguments)
    named = [p for p in inputs if _by_name(p.name, arguments)]
    by_hand = [p for p in placed if p not in inputs or p in named or _takes_several(p)]
    skip: set[str | int] = {p.name for p in by_hand}
    parser.add_function_arguments(target, as_group=False, as_positional=True, skip=skip)
    for parameter in by_hand:
        if parameter in named:
            parser.add_argument(f"--{parameter.name}", type=parameter.annotation, required=True)
        elif parameter in inputs:  # jsonargparse would want a list as one argument, "[a, b]"
            (item,) = get_args(parameter.annotation)
            few = "+" if parameter.default is parameter.empty else "*"
            parser.add_argument(parameter.name, type=item, nargs=few, help="one or more")
        else:  # inputs are told by their place, but where the output goes always by its name
            parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    flags = {f"--{p.name}" for p in parameters if p.annotation is bool}
    values = parser.instantiate(parser.parse_args(_spell_out(flags, arguments)))
    if configurable:
        del values["config"]
    return target(**values)


def _told(message: str) -> str:
    """What jsonargparse has against the arguments, in one line: which one, what it must be and what came."""
    name = re.match('Parser key "(.+?)":', message)
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if not (name and kinds and value):
        return " ".join(message.split())
    return f"{name[1]} must be {' or '.join(dict.fromkeys(map(_kind, kinds)))}, got {value[1]!r}"


def _kind(text: str) -> str:
    """A type as people write it: `<class 'int'>` is int, and a literal's values one of them."""
    text = re.sub(r"<class '(?:.+\.)?(.+?)'>", r"\1", text).replace("NoneType", "null")
    if text in ("list", "tuple"):
        return "a list such as [a, b]"
    return re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", text)


def _by_name(name: str, arguments: list[str]) -> bool:
    return any(argument.split("=")[0] == f"--{name}" for argument in arguments)


def _takes_several(parameter: inspect.Parameter) -> bool:
    return get_origin(parameter.annotation) is list


def _placeholder(parameter: inspect.Parameter) -> str:
    return parameter.name.upper() + ("..." if _takes_several(parameter) else "")


def _spell_out(flags: set[str], arguments: list[str]) -> list[str]:
    """Gives a bare flag the value that jsonargparse wants: `--resume` becomes `--resume=true`."""
    following = [*arguments[1:], "--"]
    return [
        f"{argument}=true" if argument in flags and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=False)
    ]


def _resolve_configs(arguments: list[str]) -> list[str]:
    """Puts the paths of the package's configurations in place of their names."""
    joined = "--config="
    resolved = list(arguments)
    for i, argument in enumerate(arguments):
        if argument.startswith(joined):
            resolved[i] = joined + find_config(argument.removeprefix(joined))
        elif i and arguments[i - 1] == "--config":
            resolved[i] = find_config(argument)
    return resolved


def find_config(name: str) -> str:
    """The path of a configuration file.

    Args:
        name: a path, or the name of a configuration that comes with the package, such as `small`, or of a system.

    Raises:
        FileNotFoundError: there is neither.
    """
    from avemo.systems import CONFIGS

    folders = (CONFIGS, CONFIGS / "systems")
    paths = [Path(name), *(f / file for f in folders for file in (name, f"{name}.yaml"))]
    for path in paths:
        if path.is_file():
            return str(path)
    ours = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise FileNotFoundError(
        f"no configuration {name!r}: it is no file, not one of ours ({ours}), "
        "and no system (`avemo systems` lists them)"
    )


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: avemo [-h] [--version] [--debug] COMMAND ...",
            "",
            "Audio-visual emotion recognition with factorized bilinear pooling.",
            "",
            "commands:",
            *lines,
            "",
            "`avemo COMMAND --help` lists a command's arguments; --debug shows where an error came from.",
        ]
    )


def _summary(target: Callable[..., Any]) -> str:
    return (target.__doc__ or "").split("\n\n    Args:")[0]


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        # Folders are made where there are none, files take the place of others: what is in the way is no folder.
        said = "must be a folder, and is none" if error.errno == errno.EEXIST else error.strerror
        return f"{os.fsdecode(error.filename)}: {said}"
    lines = (str(error).strip() or type(error).__name__).splitlines()
    if len(lines) > 1 and lines[1].startswith("Original Traceback"):
        return lines[-1].partition(": ")[
            2
        ]  # raised where clips are read ahead: the first line says so
    return lines[0]
