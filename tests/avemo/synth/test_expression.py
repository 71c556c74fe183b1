"""A corpus whose emotion shows from beginning to end: a control, equal in all else."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from avemo.synth import synthesize
from avemo.synth.corpus import Parameters, plan

PART = Parameters(24, 4, 5, 1.0, 96, 25, 16000)


def test_the_emotion_shows_in_the_whole_clip_and_nothing_else_is_drawn_differently() -> None:
    whole = plan(replace(PART, expression="whole"))
    for ours, theirs in zip(whole, plan(PART), strict=True):
        times = np.linspace(0, ours.script.duration, 200)
        assert (ours.script.emphasis.envelope(times) == 1).all()
        assert theirs.script.emphasis.envelope(times).min() == 0
        assert ours.script.duration == theirs.script.duration
        for name in ("label", "speaker", "split", "intensity", "units", "delivery", "identity"):
            assert getattr(ours, name) == getattr(theirs, name), name


def test_its_files_say_so_and_older_corpora_are_taken_up(tmp_path: Path) -> None:
    small = {"clips": 12, "size": 64, "fps": 5, "workers": 1}
    synthesize(tmp_path / "whole", expression="whole", **small)
    text = (tmp_path / "whole" / "README.md").read_text("utf-8")
    assert "from beginning to end" in text
    assert "--expression whole" in text
    record = tmp_path / "whole" / "parameters.json"
    assert json.loads(record.read_text("utf-8"))["expression"] == "whole"
    with pytest.raises(FileExistsError, match="expression is 'whole', asked for 'part'"):
        synthesize(tmp_path / "whole", **small)
    older = asdict(Parameters(12, 4, 0, 1.0, 64, 5, 16000))
    del older["expression"]
    record.write_text(json.dumps(older), "utf-8")
    synthesize(tmp_path / "whole", **small)  # no error: it is the corpus that was asked for
    with pytest.raises(ValueError, match="expression='never': expected part or whole"):
        Parameters(24, 4, 5, 1.0, 96, 25, 16000, "never")  # type: ignore[arg-type]
