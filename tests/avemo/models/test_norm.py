"""Batch normalisation over padded clips against PyTorch's own on the frames alone."""

import torch
from torch import nn

from avemo.models.norm import FrameBatchNorm


def test_equals_batch_norm_of_the_frames_alone() -> None:
    torch.manual_seed(0)
    ours, theirs = FrameBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.25)
    lengths = torch.tensor([6, 1, 4])
    for _ in range(3):
        x = torch.randn(3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
        spoiled = x.detach().clone()
        for row, n in enumerate(lengths):
            spoiled[row, ..., n:] = float("nan")
        spoiled.requires_grad_()
        y = ours(spoiled, lengths)
        frames = [x[row, ..., :n].flatten(1).T for row, n in enumerate(lengths)]
        expected = theirs(torch.cat(frames))
        got = torch.cat([y[row, ..., :n].flatten(1).T for row, n in enumerate(lengths)])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        got.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(spoiled.grad, x.grad, rtol=1e-9, atol=1e-12)
    for name, statistic in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), statistic, rtol=1e-12, atol=1e-12)
    ours.eval()
    theirs.eval()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = theirs(x.flatten(2)).unflatten(2, (5, 6))
    torch.testing.assert_close(ours(x, torch.tensor([6, 2])), expected, rtol=1e-12, atol=1e-12)
