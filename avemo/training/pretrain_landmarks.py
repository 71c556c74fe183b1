"""Trains the network that finds landmarks, for systems to measure distances between them."""

from pathlib import Path

from avemo.models.backend import BackendName
from avemo.models.config import ModelConfig
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig

FILE = "landmarks.safetensors"


def pretrain_landmarks(
    *,
    data: DataConfig,
    predictor: Path,
    model: ModelConfig = ModelConfig(),  # noqa: B008, it is frozen
    optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    trainer: TrainerConfig = TrainerConfig(),  # noqa: B008
    seed: int = 0,
    out: Path = Path("runs/landmarks"),
    backend: BackendName | None = None,
) -> Path:
    """Trains a network to find 68 landmarks in the crops of the train split of a cache, where dlib finds them.

    The folder `out` receives landmarks.safetensors, the weights that a network `landmarks` of a system of the same
    `model.video.channels` starts from; it is written after each epoch that is the best so far. A system needs neither
    dlib nor its file then.

    Args:
        data: the clips and how they are served; landmarks are found in crops as they are changed for training.
        predictor: a shape predictor of dlib for the 68 landmarks of iBUG's annotation (.dat).
        model: of which `video.channels` are those of the network.
        optimizer: the optimiser and its schedule.
        trainer: of which `epochs`, `accelerator` and `precision` count.
        seed: of the initial weights, the order of clips and augmentation.
        out: folder for what is written.
        backend: kernels that run the network's operators; by default the best for each.

    Returns:
        landmarks.safetensors: the network of the best epoch.

    Raises:
        FileExistsError: `out` holds such a network.
        FolderInUseError: another process is writing into `out`.
        ValueError: dlib is not installed, `predictor` is no predictor of 68 landmarks, or `trainer` asks for more.
        TrainingDivergedError: the loss is no longer a finite number.
        CacheError: a clip cannot be read.
    """
    import lightning.pytorch as pl

    from avemo.data.datamodule import ClipDataModule
    from avemo.data.landmarks import ShapePredictor
    from avemo.models.backend import use_backend
    from avemo.models.landmarks import POINTS, LandmarkDistances
    from avemo.storage import one_writer
    from avemo.training.landmarks import LandmarkModule
    from avemo.training.memory import keep_freed_memory
    from avemo.training.train import quieten

    plain = TrainerConfig(trainer.epochs, trainer.accelerator, trainer.precision)
    if trainer != plain:
        raise ValueError(
            "trainer must have no settings but epochs, accelerator and precision to find landmarks; "
            f"got {trainer}"
        )
    file = out / FILE
    if file.exists():
        raise FileExistsError(f"{file} is there already; choose another --out")
    quieten()
    clips = ClipDataModule(**vars(data), seed=seed, needs=("video",))
    teacher = ShapePredictor(predictor, points=POINTS, margin=clips.features.face_margin)
    pl.seed_everything(seed, verbose=False)
    network = LandmarkDistances(clips.features.face_size, model.video)
    use_backend(network, backend)
    keep_freed_memory()
    learner = LandmarkModule(network, teacher, optimizer, file)
    loop = pl.Trainer(
        max_epochs=trainer.epochs,
        accelerator=trainer.accelerator,
        devices=1,
        precision=trainer.precision,
        gradient_clip_val=optimizer.gradient_clip,
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    with one_writer(out, "avemo pretrain-landmarks"):
        loop.fit(learner, clips)
    print(
        f"landmarks of the validation split's faces are found, in the mean, within {learner.least_error:.1%} of the "
        f"distance between the eyes' outer corners from where dlib finds them; saved as {file}"
    )
    return file
