"""Models that are saved to, and come from, folders in the layout of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from avemo.training.checkpoint import Checkpoint

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """The base of every model that is trained.

    Attributes:
        trained: what the model was trained on, where it was read from a checkpoint.
    """

    trained: Checkpoint | None = None

    @classmethod
    def from_pretrained(cls: type[Model], path: Path | str) -> Model:
        """Reads a trained model; nothing in its files is executed.

        Args:
            path: a folder of `save_pretrained`, or a checkpoint of `avemo train`.

        Returns:
            The model in evaluation mode, on the CPU; its `trained` has classes and features.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is no checkpoint that this version can read, or of another class of models.
        """
        from avemo.training.checkpoint import CheckpointError, load

        model = load(path).model
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{path} holds a model of the class {type(model).__name__}, not {cls.__name__}"
            )
        return model

    def save_pretrained(self, folder: Path | str, *, run: Path | str | None = None) -> None:
        """Writes model.safetensors, config.json and a model card, README.md.

        Args:
            folder: made if needed.
            run: the folder of the training, whose record the card is written from.

        Raises:
            ValueError: the model was not read from a checkpoint, so that nobody knows its classes.
        """
        from avemo.training.card import card
        from avemo.training.checkpoint import save_folder

        if self.trained is None:
            raise ValueError(
                "the model must come from a checkpoint (`from_pretrained`, `avemo.load`), which has its classes and "
                "features; `avemo.save` writes one of a model that was made otherwise"
            )
        given = self.trained
        save_folder(folder, self, given.config, given.classes, given.features)
        text = card(given, None if run is None else Path(run))
        (Path(folder) / "README.md").write_text(text, "utf-8")
