"""The EmotiW baseline: patterns counted by hand, a machine that is scikit-learn's, and a run of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avemo.cli import main
from avemo.data.batch import Batch
from avemo.data.datamodule import ClipDataModule
from avemo.models.lbp_top_svm import LBPTopSVM, chi_square, lbp_top
from avemo.training import checkpoint
from avemo.training.config import DataConfig
from avemo.training.train import train
from tests.avemo.models.tiny_model import tiny_batch, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache

pytest.importorskip("skimage")


def uniform_number(bits: list[int]) -> tuple[int, int]:
    """How many ones there are in a circle of eight, and in how many places it changes."""
    return sum(bits), sum(bits[i] != bits[i - 1] for i in range(8))


def test_patterns_on_each_plane_are_those_of_the_definition() -> None:
    """A pattern is told by its neighbours alone: bright where they are at least as bright as the middle."""
    rng = np.random.default_rng(0)
    clip = rng.integers(1, 9, (5, 12, 12)).astype(float)
    histograms = lbp_top(torch.from_numpy(clip)[None], torch.tensor([5]))[0]
    histograms = histograms.unflatten(0, (4, 4, 3, 59)).numpy()
    # Neighbours in the diagonals are interpolated at a distance of 1.
    near = [(np.sin(a), np.cos(a)) for a in 2 * np.pi * np.arange(8) / 8]

    def value(plane: np.ndarray, y: float, x: float) -> float:
        top, left = int(np.floor(round(y, 5))), int(np.floor(round(x, 5)))
        down, right = min(top + 1, plane.shape[0] - 1), min(left + 1, plane.shape[1] - 1)
        v, u = round(y, 5) - top, round(x, 5) - left
        return (
            plane[top, left] * (1 - v) * (1 - u) + plane[top, right] * (1 - v) * u
            + plane[down, left] * v * (1 - u) + plane[down, right] * v * u
        )  # fmt: skip

    def mixed(t: int, y: int, x: int, number: int) -> bool:
        """Whether a voxel's pattern on a plane changes in more than two places."""
        plane, a, b = [(clip[t], y, x), (clip[:, y], t, x), (clip[:, :, x], t, y)][number]
        bits = [int(value(plane, a - dy, b + dx) >= plane[a, b] - 1e-9) for dy, dx in near]
        return uniform_number(bits)[1] > 2

    for number in range(3):
        for i, j in np.ndindex(4, 4):
            voxels = [
                (t, y, x)
                for t, y, x in np.ndindex(5, 12, 12)
                if i * 3 <= y < i * 3 + 3 and j * 3 <= x < j * 3 + 3
                and all(0 < c < n - 1 for k, (c, n) in enumerate(((t, 5), (y, 12), (x, 12))) if k != number)
            ]  # fmt: skip
            share = np.mean([mixed(*voxel, number) for voxel in voxels])
            assert histograms[i, j, number].sum() == pytest.approx(1)
            assert histograms[i, j, number, 58] == pytest.approx(share, abs=1e-6)


def test_frames_without_a_face_and_padding_count_for_nothing() -> None:
    _, _, faces, lengths = tiny_batch()
    expected = lbp_top(faces, lengths)
    with_holes = torch.zeros(len(faces), 11, 16, 16)
    places = [0, 1, 3, 4, 5, 7, 8, 10]
    with_holes[:, places] = faces
    ends = torch.tensor([places[n - 1] + 1 for n in lengths.tolist()])
    assert torch.equal(lbp_top(with_holes, ends), expected)
    assert not expected[1].unflatten(0, (16, 3, 59))[:, 1:].any()  # one frame: no plane in time


def batches(folder: Path) -> list[Batch]:
    clips = ClipDataModule(write_cache(folder, {"train": 24, "val": 8}), batch_size=7)
    return list(clips.evaluation_dataloader("train"))


def test_its_answer_is_that_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import SVC

    train_batches = batches(tmp_path)
    model = tiny_model("lbp_top_svm")
    assert isinstance(model, LBPTopSVM)
    model.learn(train_batches)
    features = torch.cat([lbp_top(b.video, b.video_lengths) for b in train_batches]).double()
    labels = torch.cat([b.labels for b in train_batches]).numpy()

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sums = x[:, None] + y[None]
        distances = ((x[:, None] - y[None]) ** 2 / np.where(sums > 0, sums, 1)).sum(2)
        return np.exp(-distances / float(model.width))

    mean = chi_square(features, features).mean()
    assert float(model.width) == pytest.approx(float(mean), rel=1e-5)
    theirs = OneVsRestClassifier(SVC(kernel=kernel)).fit(features.numpy(), labels)
    new = tiny_batch()
    expected = theirs.decision_function(lbp_top(*new[2:]).double().numpy())
    np.testing.assert_allclose(model(*new).logits.numpy(), expected, atol=1e-4)


def test_a_run_learns_it_and_its_checkpoint_brings_the_clips_it_leans_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = write_cache(tmp_path / "cache", {"train": 40, "val": 8, "test": 8})
    result = train(
        data=DataConfig(cache, batch_size=9), model=tiny_config("lbp_top_svm"), out=tmp_path / "run"
    )
    loaded = checkpoint.load(result.best).model
    assert isinstance(loaded, LBPTopSVM)
    assert 0 < len(loaded.clips) <= 40
    assert main(["evaluate", str(result.best), str(cache), "--split", "train"]) == 0
    assert "accuracy              100.0%" in capsys.readouterr().out
