"""The audio encoder: AlexNet's sizes, exact lengths, and no leak from the padding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.models.audio import AudioEncoder
from avemo.models.config import AudioEncoderConfig
from tests.avemo.models.tiny_model import tiny_batch, tiny_config


def encoder(bins: int = 20) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(bins, tiny_config().audio).eval()


def normalise(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch normalisation in evaluation, from its definition."""
    mean, var, weight, bias = (
        p[:, None, None] for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def test_full_size_maps_are_those_of_the_paper() -> None:
    full = AudioEncoder(200, AudioEncoderConfig()).eval()
    sizes = {}
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "collapse"):
        full.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: sizes.update({name: tuple(out.shape[1:])})
        )
    with torch.no_grad():
        encoded, lengths = full(torch.randn(1, 200, 300), torch.tensor([300]))
    assert sizes == {
        "conv1": (96, 50, 150),
        "conv2": (256, 24, 74),
        "conv3": (384, 11, 36),
        "conv4": (384, 11, 36),
        "conv5": (256, 11, 36),
        "collapse": (256, 1, 36),
    }
    assert encoded.shape == (1, 36, 256)
    assert lengths.tolist() == [36]


def test_equals_the_layers_written_out() -> None:
    """One clip alone: convolutions, ReLU, response normalisation and poolings as AlexNet has them."""
    ours = encoder().double()
    x = torch.randn(2, 20, 61, dtype=torch.float64)
    for norm in ours.norms:  # statistics as after some training
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
    h = x.unsqueeze(1)
    for conv, norm, stride in zip(
        (ours.conv1, ours.conv2), ours.norms[:2], ((1, 2), (1, 1)), strict=True
    ):
        h = F.relu(normalise(F.conv2d(h, conv.weight, None, stride, conv.padding), norm))
        square = F.pad(h.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        h = F.max_pool2d(h / (1 + 1e-4 / 5 * square) ** 0.75, 3, 2)
    for conv, norm in zip((ours.conv3, ours.conv4, ours.conv5), ours.norms[2:], strict=True):
        h = F.relu(normalise(F.conv2d(h, conv.weight, None, 1, 1), norm))
    expected = torch.einsum("bcft,ocf->bto", h, ours.collapse.weight.squeeze(3))
    expected = expected + ours.collapse.bias
    torch.testing.assert_close(ours(x, torch.tensor([61, 61]))[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_leak(training: bool) -> None:
    """A clip's frames are the same however far its batch is padded, and whatever is in the padding."""
    ours = encoder().double().train(training)
    audio, lengths, _, _ = tiny_batch()
    audio = audio.double()
    encoded, out_lengths = ours(audio, lengths)
    spoiled = F.pad(audio, (0, 37))
    for row, n in enumerate(lengths):
        spoiled[row, :, n:] = 1e3
    padded, padded_lengths = ours(spoiled, lengths)
    assert padded_lengths.tolist() == out_lengths.tolist()
    frames = encoded.shape[1]
    torch.testing.assert_close(padded[:, :frames], encoded, rtol=1e-12, atol=1e-12)
    assert not padded[:, frames:].any()


def test_a_clip_is_the_same_alone() -> None:
    ours = encoder().double()
    audio, lengths, _, _ = tiny_batch()
    audio = audio.double()
    encoded, out_lengths = ours(audio, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, alone_length = ours(audio[row : row + 1, :, :n], lengths[row : row + 1])
        frames = int(alone_length)
        assert frames == alone.shape[1] == int(out_lengths[row])
        torch.testing.assert_close(encoded[row, :frames], alone[0], rtol=1e-12, atol=1e-12)
        assert not encoded[row, frames:].any()


def test_every_length_from_one_frame_up() -> None:
    ours = encoder()
    for frames in range(1, 40):
        encoded, lengths = ours(torch.randn(1, 20, frames), torch.tensor([frames]))
        assert encoded.shape[1] == int(lengths) == int(ours.out_lengths(torch.tensor([frames])))
        assert int(lengths) >= 1
        assert encoded.isfinite().all()


def test_a_norm_that_knows_no_lengths_is_refused() -> None:
    """As PyTorch's converter makes of ours; nor is the ReLU lost."""
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(encoder()).eval()
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == 5
    with pytest.raises(TypeError, match="unexpected keyword argument 'relu'"):
        converted(*tiny_batch()[:2])


def test_too_few_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="got 4 bins"):
        encoder(bins=4)
