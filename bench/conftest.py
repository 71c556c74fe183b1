"""Lets pytest-benchmark run the suites: contenders of a case are timed in turn, and each is one benchmark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine, shapes
from bench.contenders import KERNELS
from bench.names import COPY, PEERS
from bench.plan import Outcome, Plan
from bench.records import Run
from bench.session import Replay, Session
from bench.suite import MODES, Choice

_SESSION = pytest.StashKey[Session]()
_REPLAY = Replay()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("avemo", "what is measured; lists are separated by commas")
    lists = {
        "--labels": (
            shapes.USUAL,
            "rows of the tables of shapes",
        ),
        "--curves": ([], "sizes to vary: B, K, H"),
        "--dtypes": (["float32"], "float32, tf32, bfloat16, float16"),
        "--modes": (MODES, "forward, training"),
        "--backends": (KERNELS, "of ours"),
        "--peers": ((*PEERS, COPY), "of others"),
    }
    for name, (default, text) in lists.items():
        group.addoption(name, type=_words, default=tuple(default), help=text)
    group.addoption("--device", default="cpu", help="cpu or cuda")
    group.addoption("--threads", type=int, default=2, help="of PyTorch")
    group.addoption("--seconds", type=float, default=0.5, help="for the turns of one case")
    group.addoption("--out", type=Path, default=None, help="file for the run")
    group.addoption("--resume", action="store_true", help="go on with the run in that file")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    torch.set_num_threads(option.threads)
    resumed = option.resume and option.out.is_file()
    config.stash[_SESSION] = Session(
        Choice(
            option.labels,
            option.curves,
            option.dtypes,
            option.modes,
            option.backends,
            option.peers,
            option.device,
        ),
        option.seconds,
        option.out,
        _earlier(option.out, option.device) if resumed else None,
        option.resume,
    )


def _earlier(path: Path, device: str) -> Run:
    """The run in a file.

    Raises:
        pytest.UsageError: it is of another machine, software or commit.
    """
    run = Run.load(path)
    try:
        machine.require_same(run.machine, machine.describe(device), f"{path} cannot be resumed")
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the suite with every contender."""
    session = metafunc.config.stash[_SESSION]
    choice = session.choice
    pairs = [
        pytest.param(
            plan,
            name,
            id=f"{plan.name.split(' ', 1)[1].replace(' ', '-')}-{name.replace(' ', '-')}",
            marks=pytest.mark.benchmark(group=plan.name, timer=_REPLAY),
        )
        for plan in metafunc.module.PLANS(choice)
        if not session.has(plan)
        for name in choice.names(plan)
    ]
    metafunc.parametrize(("plan", "contender"), pairs)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes which contenders were chosen: they are timed together."""
    for item in items:
        parameters: dict[str, Any] = item.callspec.params  # type: ignore[attr-defined]
        config.stash[_SESSION].choose(parameters["plan"], parameters["contender"])
    print(config.stash[_SESSION].to_do, flush=True)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Plan, str], None]:
    """Reports a contender of a case to pytest-benchmark; the first to come measures all of them."""
    session = request.config.stash[_SESSION]

    def run(plan: Plan, contender: str) -> None:
        outcome = session.outcome(plan)
        _skip_or_fail(outcome, contender)
        measurement = outcome.case.contenders[contender]
        benchmark.extra_info |= {peer: r.median for peer, r in measurement.ratios.items()}
        samples = outcome.samples[contender]
        _REPLAY.load(samples)
        benchmark.pedantic(lambda: None, rounds=len(samples))

    return run


def _skip_or_fail(outcome: Outcome, contender: str) -> None:
    if contender in outcome.wrong:
        pytest.fail(f"{outcome.case.name}: {contender}: {outcome.wrong[contender]}", pytrace=False)
    if contender in outcome.case.left_out:
        pytest.skip(outcome.case.left_out[contender])


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[_SESSION].finish()
