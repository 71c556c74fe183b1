"""Bytes, against what is known."""

import torch

from bench import memory


def test_peak_counts_what_is_held_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        del second
        return third

    assert memory.peak_bytes(run, "cpu") == 4 * 4000


def test_kept_counts_what_autograd_saved_once_and_not_the_inputs() -> None:
    x, weight = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)

    def run() -> torch.Tensor:
        projected = x @ weight  # saves its inputs
        return projected.exp().square()  # saves the result of exp, for both

    assert memory.kept_bytes(run, (x, weight)) == 4 * 64


def test_nothing_is_kept_without_gradients() -> None:
    x = torch.randn(8, 8)
    assert memory.kept_bytes(lambda: x.exp().square(), (x,)) == 0
