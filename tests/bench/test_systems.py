"""What the kernels bring to each system: measured, and gone on with."""

import json
from pathlib import Path

import pytest

from bench import systems


def test_it_measures_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "systems.json"

    def run(*names: str) -> dict[str, dict[str, dict[str, float]]]:
        words = [*names, "--shape", "tiny", "--seconds", "0.1", "--resume", "--out", str(out)]
        monkeypatch.setattr("sys.argv", ["bench.systems", *words])
        assert systems.main() == 0
        found: dict[str, dict[str, dict[str, float]]] = json.loads(out.read_text())["systems"]
        return found

    first = run("att_blstm_fcn")
    both = run("att_blstm_fcn", "am_fbp")
    assert list(both) == ["att_blstm_fcn", "am_fbp"]
    assert both["att_blstm_fcn"] == first["att_blstm_fcn"]
    assert capsys.readouterr().out.count(" times; ") == 2
    for found in both.values():
        assert found["turns"] >= systems.LEAST_TURNS
        for side in ("reference_s", "accelerated_s"):
            assert 0 < found[side]["low"] <= found[side]["median"] <= found[side]["high"]
        assert 0 < sum(found["bound_by"].values()) <= 1


def test_every_audio_system_is_measured() -> None:
    assert systems.names() == [
        "am_fbp", "att_blstm_fcn", "cnn_lstm", "fusion_tacn", "2d_abfcn", "1d_abfcn_no_lrn", "1d_abfcn",
    ]  # fmt: skip
