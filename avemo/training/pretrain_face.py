"""Trains the face encoder alone, for others to start from."""

from dataclasses import replace
from pathlib import Path

from avemo.models.backend import BackendName
from avemo.models.config import ModelConfig
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.train import train

FILE = "face.safetensors"


def pretrain_face(
    *,
    data: DataConfig,
    model: ModelConfig = ModelConfig(),  # noqa: B008, it is frozen
    optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    trainer: TrainerConfig = TrainerConfig(),  # noqa: B008
    seed: int = 0,
    out: Path = Path("runs/face"),
    backend: BackendName | None = None,
    resume: bool = False,
) -> Path:
    """Trains the face encoder to name the emotion of single crops, on the train split of a cache.

    The folder `out` receives face.safetensors, which `avemo train --model.video.weights` starts a system
    of the same `model.video` from, and all that `avemo train` writes.

    Args:
        data: the clips and how they are served.
        model: of which the video encoder is taken.
        optimizer: the optimiser and its schedule.
        trainer: the loop.
        seed: of the initial weights, the order of clips, augmentation and dropout.
        out: folder for all that the run writes.
        backend: kernels that run the encoder's operators; by default the best for each.
        resume: go on with the run in `out` where it was killed.

    Returns:
        face.safetensors: the encoder of the best epoch.

    Raises:
        FileExistsError: `out` holds a run and `resume` is not set.
        ValueError: as `train`.
    """
    from safetensors.torch import save

    from avemo.storage import write
    from avemo.training import checkpoint

    alone = replace(model, name="faces")
    run = train(
        data=data,
        model=alone,
        optimizer=optimizer,
        trainer=trainer,
        seed=seed,
        out=out,
        backend=backend,
        resume=resume,
    )
    encoder = checkpoint.load(run.best).model.video
    weights = {name: x.contiguous() for name, x in encoder.state_dict().items()}  # type: ignore[union-attr]
    write(out / FILE, save(weights))
    print(
        f"face encoder saved as {out / FILE}; start from it by --model.video.weights {out / FILE}"
    )
    return out / FILE
