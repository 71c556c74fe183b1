"""The load: nothing is lost, and what is too much is refused."""

from pathlib import Path

import pytest

from bench import serve
from tests.avemo.data.media_files import write_clip
from tests.avemo.serve.running import make_checkpoint


@pytest.mark.slow
def test_a_short_load(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model.safetensors")
    clip = write_clip(tmp_path / "clip.mp4", seconds=1.0)
    load = serve.run_load(checkpoint, clip, clients=30, seconds=4.0)
    assert set(load.statuses) == {"200", "429"}
    assert load.different == 0
    assert load.statuses["200"] >= 10  # the places that there are
    assert load.memory
    assert load.alone is not None
    assert load.latency is not None
    assert load.alone.median < load.latency.median
    assert load.warm is not None
    assert load.clip_seconds == pytest.approx(1.0, abs=0.1)
    assert load.warm.median < 10 * load.alone.median
    assert load.alone.median < 10 * load.warm.median
