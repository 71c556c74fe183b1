"""What slow imports do to the collection of garbage."""

import gc
from collections.abc import Iterator

import pytest

from avemo import cli, imports


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that is not a command's own, now and afterwards."""
    monkeypatch.setattr(imports, "_own_process", False)
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("collection")
def test_nothing_is_collected_while_much_is_imported() -> None:
    with imports.without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0, "what is here may become garbage later"


@pytest.mark.usefixtures("collection")
def test_a_command_of_its_own_never_looks_through_what_it_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os._exit", lambda status: None)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr("sys.argv", ["avemo", "systems"])
    cli.console()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
