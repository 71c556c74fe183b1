"""The baseline of EmotiW: LBP-TOP on aligned faces, and a support vector machine.

Dhall (2019), "EmotiW 2019: Automatic Emotion, Engagement and Cohesion Prediction Tasks", has the baseline of the
years before it: the face is cut into 4 by 4 blocks that do not overlap, each block's local binary patterns on three
orthogonal planes (Zhao and Pietikäinen 2007) are concatenated, and a non-linear SVM learns the emotions. The baseline
aligns faces by landmarks, ours are as the cache has them; eight neighbours at a distance of 1, uniform patterns (59
bins for each plane), the chi-square kernel with the mean distance as its width, C = 1 and one machine for each class
against the others are ours.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avemo.data.batch import Batch
from avemo.data.features import FACE_MEAN, FACE_STD
from avemo.imports import needs
from avemo.models.config import ModelConfig
from avemo.models.output import Output
from avemo.models.pretrained import Pretrained
from avemo.models.video import seen_frames

_BLOCKS = 4  # in each direction
_BINS = 59  # of uniform patterns of eight neighbours
_PLANES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))  # of (T, Y, X): what the plane is cut at, and its axes
_GROWING = ("clips", "coefficients")  # as many as there are support vectors


class LBPTopSVM(Pretrained):
    """Knows faces by their texture in space and time. Nothing of it is trained by gradients: `learn` sets it.

    Args:
        config: of which it takes no notice.
        bins: likewise.
        face_size: height and width of the face crops, at least 12.
        classes: number of emotions.

    Raises:
        ValueError: `face_size` is too small for its blocks.
    """

    streams = ("video",)
    clips: Tensor
    coefficients: Tensor
    intercepts: Tensor
    width: Tensor

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        if face_size < 3 * _BLOCKS:
            raise ValueError(f"face_size must be at least {3 * _BLOCKS}, got {face_size}")
        features = _BLOCKS**2 * len(_PLANES) * _BINS
        self.register_buffer("clips", torch.zeros(0, features))
        self.register_buffer("coefficients", torch.zeros(classes, 0))
        self.register_buffer("intercepts", torch.zeros(classes))
        self.register_buffer("width", torch.ones(()))
        self.register_load_state_dict_pre_hook(_grow)

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        """Classifies a batch as `VideoOnly`; the logits are the machines' distances from their margins."""
        features = lbp_top(video, video_lengths).to(self.clips)
        kernel = torch.exp(-chi_square(features, self.clips) / self.width)
        return Output(kernel @ self.coefficients.T + self.intercepts, None, None)

    @staticmethod
    def check_packages() -> None:
        """Checks that scikit-image and scikit-learn are there.

        Raises:
            ValueError: one of them is not.
        """
        needs("the EmotiW baseline", "skimage", "sklearn", extra="baseline")

    @torch.no_grad()
    def learn(self, batches: Iterable[Batch]) -> None:
        """Learns the clips of a split, all at once.

        Raises:
            ValueError: scikit-learn is not installed, or there is one class alone.
        """
        svm = _import("sklearn.svm")
        found = [(lbp_top(batch.video, batch.video_lengths), batch.labels) for batch in batches]
        clips, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        distances = chi_square(clips, clips)
        width = distances.mean().clamp(min=torch.finfo(distances.dtype).tiny)
        kernel = torch.exp(-distances / width).double().numpy()
        weights = np.zeros((len(self.intercepts), len(clips)))
        for label in range(len(self.intercepts)):
            mine = (labels == label).numpy()
            if mine.all():
                raise ValueError("the training split must have clips of two classes at least")
            if mine.any():
                machine = svm.SVC(kernel="precomputed").fit(kernel, mine)
                weights[label, machine.support_] = machine.dual_coef_[0]
                self.intercepts[label] = float(machine.intercept_[0])
            else:
                self.intercepts[label] = -1.0  # as one that no clip is
        supporting = torch.from_numpy(weights.any(0))
        self.clips = clips[supporting].to(self.clips)
        self.coefficients = torch.from_numpy(weights).to(self.coefficients)[:, supporting]
        self.width.copy_(width)


def lbp_top(faces: Tensor, lengths: Tensor) -> Tensor:
    """Histograms of local binary patterns on three orthogonal planes.

    Args:
        faces: (B, T, S, S), padded at the end; frames that are 0 everywhere have no face, and are left out.
        lengths: int64 (B,), frames of each clip.

    Returns:
        float32 (B, blocks * planes * bins): for each block and plane the share of each pattern, or zeros where
        there are fewer than three frames to see it in.

    Raises:
        ValueError: scikit-image is not installed.
    """
    seen = seen_frames(faces, lengths)
    levels = (
        (faces.double() * FACE_STD + FACE_MEAN).round().long().cpu().numpy()
    )  # the bytes of the cache
    clips = [_histograms(clip[own]) for clip, own in zip(levels, seen.cpu().numpy(), strict=True)]
    shape = (len(clips), _BLOCKS**2 * len(_PLANES) * _BINS)
    return torch.from_numpy(np.array(clips, np.float32).reshape(shape))


def chi_square(x: Tensor, y: Tensor) -> Tensor:
    """Sum of (x - y)^2 / (x + y) over features: (N, F) and (M, F) to (N, M); nothing where both are 0."""
    rows = [((row - y).square() / (row + y).clamp(min=1e-12)).sum(1) for row in x]
    return torch.stack(rows) if rows else x.new_zeros(0, len(y))


def _histograms(clip: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T, S, S) to (blocks, blocks, planes, bins)."""
    pattern = _import("skimage.feature").local_binary_pattern
    side = clip.shape[1]
    bounds = [block * side // _BLOCKS for block in range(_BLOCKS + 1)]
    result = np.zeros((_BLOCKS, _BLOCKS, len(_PLANES), _BINS))
    for number, axes in enumerate(_PLANES):
        planes = clip.transpose(axes)
        if min(planes.shape[1:]) < 3:
            continue
        codes = np.full(
            planes.shape, _BINS, np.int64
        )  # what has not all its neighbours counts for nothing
        for code, plane in zip(codes, planes, strict=True):
            code[1:-1, 1:-1] = pattern(plane, 8, 1, "nri_uniform")[1:-1, 1:-1]
        codes = codes.transpose(np.argsort(axes))
        for i, j in np.ndindex(_BLOCKS, _BLOCKS):
            block = codes[:, bounds[i] : bounds[i + 1], bounds[j] : bounds[j + 1]]
            counts = np.bincount(block.ravel(), minlength=_BINS + 1)[:_BINS]
            result[i, j, number] = counts / max(counts.sum(), 1)
    return result


def _grow(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Makes room for as many clips as a state has."""
    for name in _GROWING:
        if prefix + name in state:
            buffer = getattr(module, name)
            setattr(module, name, buffer.new_zeros(state[prefix + name].shape))


def _import(name: str) -> Any:
    LBPTopSVM.check_packages()
    return import_module(name)
