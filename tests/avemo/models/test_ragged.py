"""The two directions of the recurrent layer against PyTorch's own, which reads packed sequences."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from avemo.models.ragged import BLSTM, LSTM


@pytest.fixture
def one() -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(5, 3, batch_first=True, bidirectional=True).double()


def like(one: nn.LSTM) -> BLSTM:
    """The same weights, under the names that they have in an LSTM of both directions."""
    two = BLSTM(one.input_size, one.hidden_size).double()
    two.load_state_dict({f"lstm.{name}": weight for name, weight in one.state_dict().items()})
    return two


def packed(one: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(one(sequence)[0], batch_first=True, total_length=x.shape[1])[0]


@pytest.mark.parametrize("lengths", [[7, 3, 1, 6], [7, 7], [1], [4, 2]])
def test_states_and_gradients_are_those_of_packed_sequences(
    one: nn.LSTM, lengths: list[int]
) -> None:
    two, sizes = like(one), torch.tensor(lengths)
    x = torch.randn(len(lengths), 7, 5, dtype=torch.float64, requires_grad=True)
    slopes = torch.randn(len(lengths), 7, 6, dtype=torch.float64)
    expected, found = packed(one, x, sizes), two(x, sizes)
    torch.testing.assert_close(found, expected)
    for states in (expected, found):
        states.backward(slopes)
    by_name = dict(one.named_parameters())
    for direction, end in ((two.onward, ""), (two.back, "_reverse")):
        for name, weight in direction.named_parameters():
            torch.testing.assert_close(weight.grad, by_name[name + end].grad)
    mine, theirs = (
        torch.autograd.grad(states, x, slopes)[0]
        for states in (two(x, sizes), packed(one, x, sizes))
    )
    torch.testing.assert_close(mine, theirs)


def test_padding_is_not_read_and_nothing_is_zero_states(one: nn.LSTM) -> None:
    two, x = like(one), torch.randn(3, 7, 5, dtype=torch.float64)
    sizes = torch.tensor([4, 0, 7])
    expected = two(x, sizes)
    assert not expected[0, 4:].any()
    assert not expected[1].any()
    x[0, 4:], x[1] = torch.nan, torch.inf
    found = two(x, sizes)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(
        weight.grad is not None and weight.grad.isfinite().all() for weight in two.parameters()
    )
    assert two(x[:0], sizes[:0]).shape == (0, 7, 6)


def test_it_begins_with_the_numbers_of_one_lstm() -> None:
    """So that a seed gives the model that it gave."""
    torch.manual_seed(3)
    two = BLSTM(5, 3)
    torch.manual_seed(3)
    one = nn.LSTM(5, 3, batch_first=True, bidirectional=True)
    for mine, theirs in zip(two.parameters(), one.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_other_names_are_refused(one: nn.LSTM) -> None:
    weights = {f"lstm.{name}": weight for name, weight in one.state_dict().items()}
    weights["lstm.weight_hr_l0"] = weights["lstm.bias_hh_l0"]
    with pytest.raises(RuntimeError, match=r"weight_hr_l0"):
        BLSTM(5, 3).load_state_dict(weights)


@pytest.mark.parametrize("lengths", [[7, 3, 1, 6], [4, 0]])
def test_one_direction_is_the_first_half_of_both(one: nn.LSTM, lengths: list[int]) -> None:
    two, onward = like(one), LSTM(5, 3).double()
    onward.load_state_dict({f"onward.{n}": x for n, x in two.onward.state_dict().items()})
    x, sizes = torch.randn(len(lengths), 7, 5, dtype=torch.float64), torch.tensor(lengths)
    expected = two(x, sizes)[..., :3]
    for clip, length in zip(x, lengths, strict=True):
        clip[length:] = torch.nan
    torch.testing.assert_close(onward(x, sizes), expected)


def test_exported_it_takes_any_number_of_clips_and_frames() -> None:
    torch.manual_seed(2)
    module = BLSTM(5, 3).double()
    free = torch.export.Dim.AUTO
    sample = (torch.randn(2, 7, 5, dtype=torch.float64), torch.tensor([7, 4]))
    program = torch.export.export(
        module, sample, dynamic_shapes=({0: free, 1: free}, {0: free}), strict=False
    ).module()
    for clips, frames in [(2, 7), (1, 3), (5, 12)]:
        x = torch.randn(clips, frames, 5, dtype=torch.float64)
        lengths = torch.randint(1, frames + 1, (clips,))
        torch.testing.assert_close(program(x, lengths), module(x, lengths))
