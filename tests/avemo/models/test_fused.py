"""Fusions that learn to classify by each stream's own vector, too."""

import pytest
import torch

from tests.avemo.models.tiny_model import tiny_batch, tiny_model


@pytest.mark.parametrize("name", ["am_fbp", "m_fbp", "encoder_concat", "mafn"])
def test_each_stream_is_classified_by_itself_in_training_alone(name: str) -> None:
    model = tiny_model(name, stream_loss=True).train()
    logits, _, _, trained = model(*tiny_batch())
    assert len(trained) == 3
    assert torch.equal(trained[0], logits)
    for scores, own, other in ((trained[1], "audio", "video"), (trained[2], "video", "audio")):
        assert scores.shape == logits.shape
        streams = {s: getattr(model, s).attention.query for s in (own, other)}
        gradients = torch.autograd.grad(
            scores.square().sum(), [*streams.values()], allow_unused=True, retain_graph=True
        )
        assert gradients[0].abs().max() > 0
        assert gradients[1] is None  # what one stream says has nothing of the other
    assert model.eval()(*tiny_batch()).trained == ()


def test_a_model_that_does_not_has_the_weights_that_it_had() -> None:
    plain, other = tiny_model(), tiny_model(stream_loss=True)
    extra = {k for k in other.state_dict() if k not in plain.state_dict()}
    assert {k.split(".")[0] for k in extra} == {"stream_classifiers"}
    assert plain.train()(*tiny_batch()).trained == ()
