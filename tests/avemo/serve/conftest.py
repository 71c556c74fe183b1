"""One model, one clip and one service for all tests of the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from avemo.serve.service import Service
from tests.avemo.data.media_files import write_clip
from tests.avemo.serve import running


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.make_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2.0)


@pytest.fixture(scope="session")
def service(checkpoint: Path) -> Iterator[Service]:
    with running.service(checkpoint, megabytes=3, seconds=10.0, workers=1, waiting=2) as made:
        yield made
