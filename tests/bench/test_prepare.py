"""Clips a second beside another commit: of the same clips, with the same bytes, in folders told from anywhere."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main


@pytest.mark.slow
def test_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["prepare", "clips", "--against", "HEAD", "--turns", "1", "--clips", "21"]
    assert main([*words, "--memory", "4", "--out", "."]) == 0
    (file,) = tmp_path.glob("prepare-*.json")
    values = json.loads(file.read_text("utf-8"))
    assert values["same_bytes"] is True
    assert values["clips"] == 21
    assert values["memory"]["clips"] == 4
    assert values["machine"]["processor"]
    now, before = (values["clips_per_second"][name]["median"] for name in ("now", "before"))
    assert values["ratio"]["median"] == pytest.approx(now / before, rel=1e-3)
