"""The command line: `run`, `parity`, `warm`, `merge`, `compare`, `goals`, `choice`, `host`, `steps` and so on."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .suite import Choice

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    commands = {
        "run": _run,
        "parity": _parity,
        "warm": _warm,
        "merge": _merge,
        "compare": _compare,
        "goals": _goals,
        "choice": _enter,
        "host": _host,
        "faces": _faces,
        "steps": _steps,
        "prepare": _prepare,
        "report": _report,
    }
    if held := getattr(options, "hold", None):
        from . import hold

        if not hold.is_held(held):
            return hold.again(held, given)
        try:
            hold.require(held)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    command = commands[options.command]
    return command(options)


def _parser() -> argparse.ArgumentParser:
    from . import shapes
    from .names import COPY, PEERS
    from .operators import OPERATORS, SUBJECTS
    from .steps import BATCHES

    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure, and write one JSON file")
    parity = commands.add_parser("parity", help="compare results and gradients with float64")
    labels = [*shapes.ALL, *shapes.MAPS, *shapes.CONVOLUTIONS]
    peers = [*PEERS, COPY]
    timed = [*OPERATORS, "training_step"]
    _add_choice(
        run, [*labels, *shapes.STEPS], list(shapes.USUAL), [*SUBJECTS, "training_step"], timed
    )
    _add_hold(run)
    _add_choice(
        parity, labels, ["clip", "batch", *shapes.MAPS, *shapes.CONVOLUTIONS], list(SUBJECTS)
    )
    parity.add_argument("--out", type=Path, help="file or folder of the verdicts, default none")
    parity.add_argument(
        "--resume", action="store_true", help="keep the verdicts that the file has, find the others"
    )
    parity.add_argument(
        "--processes",
        type=int,
        default=0,
        help="that share the operators, watched, and begun again where a contender ends one; needs --out;"
        " 0: all in this process",
    )
    warm = commands.add_parser("warm", help="compile peers ahead, for a run that finds them")
    _add_choice(warm, labels, ["clip"], list(OPERATORS))
    warm.add_argument("--peers", nargs="+", choices=PEERS, default=["compile", "max-autotune"])
    warm.add_argument("--processes", type=int, default=8, help="at a time (%(default)s)")
    merge = commands.add_parser("merge", help="put results of one machine and commit into one file")
    merge.add_argument("results", type=Path, nargs="+", help="of `run`, or of `parity`")
    merge.add_argument("--out", type=Path, required=True)
    run.add_argument("--peers", nargs="*", choices=peers, default=peers)
    run.add_argument("--curves", nargs="*", choices=shapes.CURVES, default=[], help="sizes to vary")
    run.add_argument("--seconds", type=float, default=0.5, help="for the turns of one case")
    run.add_argument(
        "--resume", action="store_true", help="keep the cases that the file has, measure the others"
    )
    run.add_argument(
        "--out",
        type=Path,
        help="file or folder, default bench/results; there it is bench-DEVICE-DATE.json",
    )

    compare = commands.add_parser(
        "compare", help="exit 1 if NEW is slower than OLD beyond the spread"
    )
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)

    goals = commands.add_parser("goals", help="measure what the CPU kernels are held to")
    goals.add_argument(
        "patterns", nargs="*", help="of goals' names, such as 'fbp B=*'; default all"
    )
    goals.add_argument("--threads", type=int, default=2, help="of PyTorch")
    goals.add_argument("--seconds", type=float, default=2.0, help="for the turns of one case")
    goals.add_argument(
        "--resume", action="store_true", help="keep the goals that the file has, measure the others"
    )
    _add_hold(goals)
    goals.add_argument(
        "--out", type=Path, help="file or folder; there it is goals-DEVICE-DATE.json; default none"
    )

    choice = commands.add_parser(
        "choice", help="enter what was measured into the table by which backends are chosen"
    )
    choice.add_argument(
        "results", nargs="+", type=Path, help="files that `run` or `goals` has written"
    )

    host = commands.add_parser(
        "host",
        help="measure what a launch in Triton costs the processor, at a driver that runs nothing",
    )
    host.add_argument("patterns", nargs="*", help="of cases, such as 'am_fbp *'; default all")
    host.add_argument("--against", metavar="COMMIT", help="measured beside what is checked out")
    host.add_argument("--turns", type=int, default=41, help="groups of calls (%(default)s)")
    host.add_argument("--out", type=Path, help="file or folder; there it is host-DEVICE-DATE.json")

    steps = commands.add_parser("steps", help="measure a training step beside another commit")
    steps.add_argument("--configurations", nargs="+", choices=BATCHES, default=list(BATCHES))
    steps.add_argument("--against", metavar="COMMIT", required=True)
    steps.add_argument("--turns", type=int, default=21, help="of each side (%(default)s)")
    steps.add_argument("--threads", type=int, default=2, help="of PyTorch (%(default)s)")
    steps.add_argument(
        "--resume",
        action="store_true",
        help="keep the configurations that the file has, measure the others",
    )
    steps.add_argument(
        "--out", type=Path, help="file or folder; there it is steps-DEVICE-DATE.json"
    )

    prepare = commands.add_parser("prepare", help="measure `avemo prepare` beside another commit")
    prepare.add_argument("folder", type=Path, help="of the clips, made where it has none")
    prepare.add_argument("--against", metavar="COMMIT", help="measured in turn; none: memory alone")
    prepare.add_argument("--turns", type=int, default=5, help="of each side (%(default)s)")
    prepare.add_argument("--clips", type=int, default=200, help="of a turn (%(default)s)")
    prepare.add_argument("--memory", type=int, metavar="CLIPS", help="to watch the workers over")
    prepare.add_argument(
        "--out", type=Path, help="file or folder; there it is prepare-DEVICE-DATE.json"
    )

    faces = commands.add_parser("faces", help="how many pictures each face detector follows")
    faces.add_argument("films", nargs="+", type=Path, help="files with a picture")
    faces.add_argument("--model", type=Path, help="of YuNet (.onnx), beside the cascade")

    report = commands.add_parser("report", help="write docs/benchmarks.md and the README's figures")
    report.add_argument("--check", action="store_true", help="write nothing, exit 1 if they differ")
    return parser


def _add_hold(parser: argparse.ArgumentParser) -> None:
    from .hold import SETTINGS

    parser.add_argument(
        "--hold",
        choices=SETTINGS,
        help="hold kernels, PyTorch and its libraries to an instruction set below the processor's best",
    )


def _add_choice(
    parser: argparse.ArgumentParser,
    labels: list[str],
    default: list[str],
    operators: list[str],
    usual: list[str] | None = None,
) -> None:
    """What is run, where; all operators, where there are no usual ones."""
    from .contenders import KERNELS
    from .operators.call import DTYPES
    from .suite import MODES

    parser.add_argument(
        "--shapes",
        nargs="*",
        choices=labels,
        default=default,
        help="rows of the tables of shapes; an operator takes those that it has",
    )
    parser.add_argument("--operators", nargs="+", choices=operators, default=usual or operators)
    parser.add_argument("--backends", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")


def _missing_device(device: str) -> bool:
    import torch

    missing = device == "cuda" and not torch.cuda.is_available()
    if missing:
        print("--device cuda: PyTorch finds no GPU here", file=sys.stderr)
    return missing


def _run(options: argparse.Namespace) -> int:
    from . import machine
    from .watch import stoppable, watched

    if _missing_device(options.device):
        return 2
    out = options.out or RESULTS
    if out.is_dir():
        out = out / machine.result_name(options.device)
    lists = {
        "labels": options.shapes,
        "curves": options.curves,
        "dtypes": options.dtypes,
        "modes": options.modes,
        "backends": options.backends,
        "peers": options.peers,
    }
    arguments = [
        *(str(FOLDER / f"test_{operator}.py") for operator in options.operators),
        *(f"--{name}={','.join(values)}" for name, values in lists.items()),
        f"--device={options.device}",
        f"--threads={options.threads}",
        f"--seconds={options.seconds}",
        f"--out={out.resolve()}",
        *(["--resume"] if options.resume else []),
        f"--rootdir={FOLDER.parent}",
        "--capture=no",
        "--no-header",
        *("-q", "-rfE", "--disable-warnings"),
        *("-p", "no:cacheprovider"),
        "--benchmark-columns=median,iqr,rounds",
        "--benchmark-sort=name",
        "--benchmark-quiet",
    ]
    with stoppable():
        command = [sys.executable, "-m", "pytest", *arguments]
        status = watched(command, out.resolve(), _patience(options.device))
    if out.is_file():
        print(f"written to {out}")
    return status


def _patience(device: str) -> float | None:
    """Seconds after which a contender that does not end is given up; a processor may be as slow as it likes."""
    return 150.0 if device == "cuda" else None


def _choice(options: argparse.Namespace) -> "Choice":
    from .suite import Choice

    return Choice(
        labels=options.shapes,
        curves=(),
        dtypes=options.dtypes,
        modes=options.modes,
        backends=options.backends,
        peers=getattr(options, "peers", ()),
        device=options.device,
    )


def _parity(options: argparse.Namespace) -> int:
    import torch

    from . import machine
    from .parity import run_parity, share_out

    if _missing_device(options.device):
        return 2
    if options.processes and options.out is None:
        print("--processes needs --out", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    out = options.out
    if out is not None and out.is_dir():
        out = out / machine.result_name(options.device, "parity")
    try:
        if not options.processes:
            return run_parity(_choice(options), options.operators, out, options.resume)
        return share_out(
            lambda operators, part: _parity_of(options, operators, part),
            options.operators,
            out,
            machine.describe(options.device),
            resume=options.resume,
            processes=options.processes,
            patience=_patience(options.device),
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def _parity_of(options: argparse.Namespace, operators: Sequence[str], part: Path) -> list[str]:
    """The command of a process that compares some of the operators."""
    lists = ("shapes", "backends", "dtypes", "modes")
    words = [word for name in lists for word in (f"--{name}", *getattr(options, name))]
    given = ["--device", options.device, "--threads", str(options.threads)]
    where = ["--operators", *operators, "--out", str(part), "--resume"]
    return [sys.executable, "-m", "bench", "parity", *words, *given, *where]


def _warm(options: argparse.Namespace) -> int:
    from .warm import run_warm

    if _missing_device(options.device):
        return 2
    return run_warm(_choice(options), options.operators, options.processes)


def _merge(options: argparse.Namespace) -> int:
    from .merge import run_merge

    return run_merge(options.results, options.out)


def _compare(options: argparse.Namespace) -> int:
    from .compare import run_compare

    return run_compare(options.old, options.new)


def _goals(options: argparse.Namespace) -> int:
    import torch

    from . import machine
    from .goals import run_goals

    torch.set_num_threads(options.threads)
    out = options.out
    if out is not None and out.is_dir():
        out = out / machine.result_name("cpu", "goals")
    return run_goals(options.patterns, options.seconds, out, resume=options.resume)


def _enter(options: argparse.Namespace) -> int:
    from .choice import run_choice

    return run_choice(options.results)


def _host(options: argparse.Namespace) -> int:
    from .host import run_host

    return run_host(options.patterns, options.against, options.turns, options.out)


def _faces(options: argparse.Namespace) -> int:
    from .faces import run_faces

    return run_faces(options.films, options.model)


def _steps(options: argparse.Namespace) -> int:
    from .steps import run_steps

    return run_steps(
        options.configurations, options.against, options.turns, options.out, options.threads,
        resume=options.resume,
    )  # fmt: skip


def _prepare(options: argparse.Namespace) -> int:
    from . import machine
    from .prepare import run_memory, run_prepare

    figures = {}
    if options.against:
        figures = run_prepare(options.folder, options.against, options.turns, options.clips)
    if options.memory:
        figures["memory"] = run_memory(options.folder, options.memory)
    if options.out is not None:
        machine.save_result(options.out, "cpu", "prepare", figures)
    return 0


def _report(options: argparse.Namespace) -> int:
    from .report import report

    return report(check=options.check)


if __name__ == "__main__":
    sys.exit(main())
