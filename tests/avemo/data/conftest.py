from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a talking head with a tone of 440 Hz."""
    from tests.avemo.data.media_files import write_clip

    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2.0)
