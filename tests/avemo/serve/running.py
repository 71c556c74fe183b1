"""A server in this process, and a model and clips for it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from avemo.data.features import FeatureConfig
from avemo.models import build_model
from avemo.serve.app import create_app
from avemo.serve.limits import Limits
from avemo.serve.service import Service
from avemo.training import checkpoint as checkpoints
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.models.tiny_model import tiny_config

CLASSES = ("angry", "happy", "neutral", "sad")
HOSTS = ["127.0.0.1", "testserver"]


def make_checkpoint(path: Path, detector: str = "haar") -> Path:
    """Of an untrained model."""
    torch.manual_seed(0)
    config = TrainConfig(
        data=DataConfig(cache=Path("none"), max_seconds=10.0), model=tiny_config("am_fbp")
    )
    features = FeatureConfig(bins=20, face_size=16, detector=detector)
    model = build_model(config.model, bins=20, face_size=16, classes=len(CLASSES))
    checkpoints.save(path, model, config, CLASSES, features)
    return path


@contextmanager
def service(checkpoint: Path, **limits: Any) -> Iterator[Service]:
    made = Service(checkpoint, None, Limits(**limits))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def running(given: Service, **options: Any) -> Iterator[str]:
    """The address of a server that answers until the context is left."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(given, hosts=HOSTS, **options), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([chosen],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{chosen.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
