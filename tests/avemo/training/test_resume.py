"""Signals that ask a run to stop."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from avemo.signals import ENDING
from avemo.training.resume import StopRequest


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Signals that would have ended the process."""
    seen: list[int] = []
    before = {each: signal.signal(each, lambda number, _: seen.append(number)) for each in ENDING}
    yield seen
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("sent", ENDING)
def test_the_same_signal_again_is_one_and_a_later_one_ends_at_once(
    sent: signal.Signals, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, start = StopRequest(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start)
    with stop.heard():
        os.kill(os.getpid(), sent)
        assert ended == [sent], "it is not listened for yet"
        stop.listen()
        os.kill(os.getpid(), sent)
        assert stop.signal == sent
        monkeypatch.setattr(time, "monotonic", lambda: start + 0.9)
        os.kill(os.getpid(), sent)
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [sent]
        monkeypatch.setattr(time, "monotonic", lambda: start + 1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [sent, signal.SIGTERM]
        assert stop.signal == sent
    os.kill(os.getpid(), sent)
    assert ended == [sent, signal.SIGTERM, sent], "handlers are the ones from before"
