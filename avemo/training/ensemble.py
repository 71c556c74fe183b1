"""Ensembles: of checkpoints that are there, and trained member by member."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from avemo.models.config import ModelConfig
from avemo.training.config import TrainConfig, to_dict

if TYPE_CHECKING:
    from avemo.training.checkpoint import Checkpoint
    from avemo.training.train import TrainResult

FILE = "best.safetensors"


def ensemble(checkpoints: list[Path], *, out: Path = Path("runs/ensemble")) -> Path:
    """Makes one checkpoint of several: its answer is the mean of their probabilities.

    `avemo evaluate` and `avemo predict` take it as any other.

    Args:
        checkpoints: .safetensors files of `avemo train`, of models that know the same classes from the same
            features.
        out: folder that receives best.safetensors.

    Returns:
        The new checkpoint.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: one of them is no checkpoint, or its classes or features are others.
    """
    from avemo.training import checkpoint

    members = [checkpoint.load(path) for path in checkpoints]
    for path, member in zip(checkpoints, members, strict=True):
        for name in ("classes", "features"):
            ours, theirs = getattr(members[0], name), getattr(member, name)
            if ours != theirs:
                raise ValueError(
                    f"{path} has the {name} {theirs}, and {checkpoints[0]} has {ours}: "
                    "the members of an ensemble must have the same"
                )
    file = out / FILE
    _save(file, members)
    print(f"ensemble of {len(members)} models saved as {file}")
    return file


def _save(file: Path, members: Sequence["Checkpoint"]) -> None:
    from avemo.training import checkpoint

    first = members[0]
    described = tuple(to_dict(member.config)["model"] for member in members)
    config = replace(first.config, model=ModelConfig("ensemble", members=described))
    weights = {
        f"members.{number}.{name}": x
        for number, member in enumerate(members)
        for name, x in member.model.state_dict().items()
    }
    checkpoint.save(file, weights, config, first.classes, first.features)


def train_members(
    config: TrainConfig, out: Path, train: Callable[[TrainConfig, Path], "TrainResult"]
) -> "TrainResult":
    """Trains the members of an ensemble one after the other, and puts them together.

    Args:
        config: of the ensemble. The seeds of its members count from its own.
        out: its folder; each member's is in it, named after its place and its model.
        train: trains one model into a folder.

    Returns:
        The ensemble of the members' best epochs, and of their last ones.
    """
    from avemo.evaluation.evaluate import evaluate
    from avemo.models.ensemble import member_configs
    from avemo.training import checkpoint
    from avemo.training.train import TrainResult

    runs = []
    for number, member in enumerate(member_configs(config.model)):
        folder = out / f"{number}-{member.name}"
        print(f"member {number} of {len(config.model.members)}, into {folder}")
        runs.append(train(replace(config, model=member, seed=config.seed + number), folder))
    best, last = (out / f"{name}.safetensors" for name in ("best", "last"))
    _save(best, [checkpoint.load(run.best) for run in runs])
    _save(last, [checkpoint.load(run.last) for run in runs])
    scores = evaluate(best, config.data.cache, split="val")
    return TrainResult(best, last, max(run.best_epoch for run in runs), scores.unweighted_accuracy)
