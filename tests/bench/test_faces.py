"""How many pictures of a film are followed: as many as `prepare` marks as valid, or refuses the film for."""

import re
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from tests.avemo.data.media_files import carphone, write_media
from tests.avemo.data.yunet import CELL, write_yunet


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.zeros((50, 128, 160, 3), np.uint8)
    frames[:30, CELL : 2 * CELL, 2 * CELL : 3 * CELL] = 255
    bright = write_media(tmp_path / "bright.mp4", frames, None)
    model = write_yunet(tmp_path / "model.onnx")
    assert main(["faces", str(carphone()), str(bright), "--model", str(model)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"\| film .* \| haar follows .* \| yunet:[0-9a-f]{16} follows .* \|", table[0]
    )
    haar, yunet = (int(x) for x in re.findall(r"(\d+)%", table[2]))
    assert table[2].startswith("| carphone_pristine.mp4 | 51 | 193 x 144 |")
    assert 60 <= haar <= 80
    assert yunet == 100  # the window behind the head
    assert re.findall(r"(\d+)%", table[3]) == ["0", "60"]
