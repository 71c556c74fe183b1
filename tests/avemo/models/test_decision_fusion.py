"""Decision fusion: the posteriors' weighted mean, and the weight that is best on given clips."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from avemo.data.batch import Batch
from avemo.data.datamodule import ClipDataModule
from avemo.models.decision_fusion import DecisionFusion
from avemo.training import checkpoint
from avemo.training.config import DataConfig, TrainerConfig
from avemo.training.train import train
from tests.avemo.models.tiny_model import tiny_batch, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_logits_are_the_logarithm_of_the_weighted_mean(share: float) -> None:
    model = tiny_model("decision_fusion").double()
    model.share.fill_(share)
    output = model(*(x.double() if x.is_floating_point() else x for x in tiny_batch()))
    heard, seen = (scores.softmax(1) for scores in output.trained)
    mixed = model.share * heard + (1 - model.share) * seen
    torch.testing.assert_close(output.logits.softmax(1), mixed, rtol=1e-12, atol=1e-12)
    assert output.logits.isfinite().all()


def right(model: DecisionFusion, clips: Batch) -> tuple[int, float]:
    """How many clips the fused decision gets right, and its cross-entropy."""
    logits = model(*clips[:4]).logits
    correct = int((logits.argmax(1) == clips.labels).sum())
    return correct, F.cross_entropy(logits, clips.labels).item()


def test_the_weight_is_the_best_of_a_hundred(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"train": 4, "val": 40})
    clips = ClipDataModule(cache, batch_size=7)
    (together,) = ClipDataModule(cache, batch_size=40).val_dataloader()
    model = tiny_model("decision_fusion")
    model.audio_classifier[2].weight.data.mul_(3)  # so that the streams' say is not the same
    with torch.no_grad():
        model.fit(clips.val_dataloader())
        found, fitted = float(model.share), right(model, together)
        for step in range(101):
            model.share.fill_(step / 100)
            correct, loss = right(model, together)
            assert (correct, -loss) <= (fitted[0], -fitted[1] + 1e-6), (step, found)


def test_it_is_fitted_before_each_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved has the weight that was fitted last, and fitting leaves nothing in training mode."""
    fits: list[float] = []
    original = DecisionFusion.fit

    def fit(self: DecisionFusion, batches: object) -> None:
        assert not self.training
        original(self, batches)  # type: ignore[arg-type]
        fits.append(float(self.share))

    monkeypatch.setattr(DecisionFusion, "fit", fit)
    result = train(
        data=DataConfig(write_cache(tmp_path / "cache"), batch_size=9),
        model=tiny_config("decision_fusion"),
        trainer=TrainerConfig(epochs=2, accelerator="cpu"),
        out=tmp_path / "run",
    )
    assert len(fits) == 2
    assert float(checkpoint.load(result.last).model.share) == fits[-1]
