"""The audio encoder: AlexNet's sizes, exact lengths, and no leak from the padding."""

import pytest
import torch
from torch.nn import functional as F

from avemo.models.audio import AudioEncoder
from avemo.models.config import AudioEncoderConfig
from tests.avemo.models.tiny_model import tiny_batch, tiny_config


def encoder(bins: int = 20) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(bins, tiny_config().audio).eval()


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
    h = x.unsqueeze(1)
    for conv, stride in ((ours.conv1, (1, 2)), (ours.conv2, (1, 1))):
        h = F.relu(F.conv2d(h, conv.weight, conv.bias, stride, conv.padding))
        square = F.pad(h.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        h = F.max_pool2d(h / (1 + 1e-4 / 5 * square) ** 0.75, 3, 2)
    for conv in (ours.conv3, ours.conv4, ours.conv5):
        h = F.relu(F.conv2d(h, conv.weight, conv.bias, 1, 1))
    expected = torch.einsum("bcft,ocf->bto", h, ours.collapse.weight.squeeze(3))
    expected = expected + ours.collapse.bias
    torch.testing.assert_close(ours(x, torch.tensor([61, 61]))[0], expected, rtol=1e-12, atol=1e-12)


def test_padding_does_not_leak() -> None:
    """A clip's frames are the same alone, among longer clips, and with garbage in its padding."""
    ours = encoder().double()
    audio, lengths, _, _ = tiny_batch()
    audio = audio.double()
    encoded, out_lengths = ours(audio, lengths)
    spoiled = audio.clone()
    for row, n in enumerate(lengths):
        spoiled[row, :, n:] = 1e3
    torch.testing.assert_close(ours(spoiled, lengths)[0], encoded, rtol=0, atol=0)
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


def test_too_few_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="got 4 bins"):
        encoder(bins=4)
