"""Configurations survive the way to disk and back, and errors in them name the setting."""

from pathlib import Path

import pytest
import yaml

from avemo.cli import find_config
from avemo.data.augment import AugmentConfig
from avemo.models import MODELS
from avemo.models.config import AudioEncoderConfig, ModelConfig
from avemo.training.config import (
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
    from_dict,
    save_config,
)


def test_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(
        DataConfig(Path("a/b"), 3, None, AugmentConfig(flip=0.5), True, 2),
        ModelConfig("audio", AudioEncoderConfig((1, 2, 3, 4, 5), (2, 1), 7, 0.125)),
        OptimizerConfig(0.5, 0.25, 0.125, 2.0, 0.0625),
        TrainerConfig(3, "cpu", "bf16-mixed"),
        seed=11,
    )
    save_config(config, tmp_path / "c.yaml")
    values = yaml.safe_load((tmp_path / "c.yaml").read_text("utf-8"))
    assert from_dict(TrainConfig, values) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"cache": "x"}, "seed": "many"}, "seed"),
        ({"data": {"cache": "x", "cached": 1}}, "cached"),
        ({"data": {}}, "cache"),
        ({"data": {"cache": "x"}, "model": {"audio": {"channels": [1, 2]}}}, "channels"),
        ({"data": {"cache": "x"}, "trainer": {"accelerator": "tpu"}}, "accelerator"),
    ],
)
def test_errors_name_the_setting(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize("name", ["full", "small"])
def test_our_configurations_are_complete(name: str, tmp_path: Path) -> None:
    values = yaml.safe_load(Path(find_config(name)).read_text("utf-8"))
    values["data"]["cache"] = "somewhere"
    assert from_dict(TrainConfig, values).model.name in MODELS
