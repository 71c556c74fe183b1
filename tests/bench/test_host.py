"""The host's cost of a launch: cases are found, measured at the stand-in of the driver, and written."""

import json
from pathlib import Path

import pytest

from bench.host import run_host


@pytest.mark.slow
def test_a_case_is_measured_with_the_launches_that_it_makes(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    assert run_host(["am_fbp clip forward", "am_fbp clip backward"], None, 1, out) == 0
    written = json.loads(out.read_text("utf-8"))
    launches = {cost["case"]: cost["launches"] for cost in written["costs"]}
    assert launches == {"am_fbp clip forward": 1, "am_fbp clip backward": 2}
    for cost in written["costs"]:
        assert 0 < cost["seconds"]["now"]["median"] < 1
        assert "before" not in cost["seconds"]
        assert cost["ratio"] is None


@pytest.mark.slow
def test_a_pattern_without_a_case_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "host.json"
    assert run_host(["nothing of the kind"], None, 1, out) == 2
    assert "no case matches nothing of the kind" in capsys.readouterr().err
    assert not out.exists()
