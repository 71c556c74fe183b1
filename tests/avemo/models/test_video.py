"""The face-frame encoder: what it sees of a frame, and padding that is never computed."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.models.config import VideoEncoderConfig
from avemo.models.video import VideoEncoder, usual_face
from tests.avemo.models.tiny_model import FACE_SIZE, tiny_batch, tiny_config


def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(FACE_SIZE, tiny_config().video)


def median_face(clip: Tensor) -> Tensor:
    """Of the nine faces in the middles of nine equal parts of a clip."""
    middles = [int((i + 0.5) * len(clip) / 9 + 1e-9) for i in range(9)]
    return torch.from_numpy(np.median(clip[middles].numpy(), axis=0))


def test_a_frame_is_seen_with_its_difference_from_the_usual_face() -> None:
    """Frame by frame, clip by clip, from the layers written out."""
    ours = encoder().eval().double()
    _, _, faces, lengths = tiny_batch()
    faces = faces.double()
    encoded = ours(faces, lengths)
    for row, n in enumerate(lengths.tolist()):
        clip = faces[row, :n]
        usual = median_face(clip)
        for t in range(n):
            x = torch.stack([clip[t], clip[t] - usual])[None]
            for conv, both in zip(*[iter(ours.stages)] * 2, strict=True):
                norm = both.norm
                x = F.conv2d(x, conv.weight, stride=2, padding=1)
                centre, var, weight, bias = (
                    p[:, None, None]
                    for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
                )
                x = F.relu((x - centre) / (var + norm.eps).sqrt() * weight + bias)
            expected = ours.project.weight @ x.flatten() + ours.project.bias
            torch.testing.assert_close(encoded[row, t], expected, rtol=1e-12, atol=1e-12)
        assert not encoded[row, n:].any()


def test_the_usual_face_is_a_median_of_the_faces_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    for frames in (1, 2, 5, 9, 10, 27, 40):
        faces = torch.randn(7, frames, 3, 5, generator=generator, dtype=torch.float64)
        seen = torch.rand(7, frames, generator=generator) < 0.6
        seen[0], seen[1], seen[2, -1] = False, True, True
        usual = usual_face(faces.where(seen[..., None, None], 0.0), seen)
        for row in range(1, 7):
            own = faces[row, seen[row]]
            want = median_face(own) if len(own) else torch.zeros(3, 5, dtype=torch.float64)
            assert torch.equal(usual[row], want)
        assert not usual[0].any()


def test_an_expression_for_less_than_half_of_the_time_is_not_usual() -> None:
    """A mean would have it in part, and neutral frames would differ from it by its opposite."""
    neutral, smile = torch.randn(2, 4, 4)
    faces = neutral.repeat(1, 20, 1, 1)
    faces[0, 8:16] = smile
    assert torch.equal(usual_face(faces, torch.ones(1, 20, dtype=torch.bool))[0], neutral)


def test_padding_is_neither_computed_nor_counted() -> None:
    """Not even the statistics of the batch normalisation see padded frames."""
    _, _, faces, lengths = tiny_batch()
    seen = []
    ours = encoder().train()
    ours.stages.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    ours(faces, lengths)
    assert seen[0].shape[0] == int(lengths.sum())
    spoiled = faces.clone()
    for row, n in enumerate(lengths):
        spoiled[row, n:] = float("nan")
    other = encoder().train()
    other(spoiled, lengths)
    for name, statistic in ours.named_buffers():
        torch.testing.assert_close(other.get_buffer(name), statistic, rtol=0, atol=0)


def test_weights_of_before_the_norms_had_a_relu_beside_them_are_loaded() -> None:
    """Then `stages.1.weight` was what is `stages.1.norm.weight` now."""
    _, _, faces, lengths = tiny_batch()
    ours = encoder().eval()
    old = {name.replace(".norm.", "."): t + 1 for name, t in encoder().state_dict().items()}
    assert "stages.1.running_mean" in old
    ours.load_state_dict(old)
    want = encoder().eval()
    want.load_state_dict(ours.state_dict())
    assert torch.equal(ours(faces, lengths), want(faces, lengths))
    assert torch.equal(ours.stages[1].norm.weight, old["stages.1.weight"])


def test_pytorch_converts_the_norms_and_the_relu_stays() -> None:
    _, _, faces, lengths = tiny_batch()
    ours = encoder().eval()
    want = ours(faces, lengths)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == 2
    torch.testing.assert_close(converted(faces, lengths), want)


@pytest.mark.parametrize("face_size", [4, 5, 7, 13])
def test_odd_sizes(face_size: int) -> None:
    ours = VideoEncoder(face_size, tiny_config().video).eval()
    faces = torch.randn(2, 3, face_size, face_size)
    encoded = ours(faces, torch.tensor([3, 1]))
    assert encoded.shape == (2, 3, 11)
    assert encoded[0].any(dim=1).all()


def test_too_small_faces_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        VideoEncoder(7, VideoEncoderConfig((2, 2, 2)))
