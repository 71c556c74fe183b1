"""Distances between landmarks of the face."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from avemo.models import ModelConfig, build_model
from avemo.models.config import NetworkConfig
from avemo.models.landmarks import DISTANCES, POINTS, LandmarkDistances, distances
from avemo.models.weights import start_weights
from tests.avemo.models.tiny_model import tiny_batch, tiny_config

# Where each landmark of iBUG's annotation is on the other side of the face.
MIRRORED = [
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
]  # fmt: skip


def test_distances_are_those_between_the_middles_of_places() -> None:
    points = np.random.default_rng(0).normal(size=(3, 2, POINTS, 2))
    found = distances(torch.from_numpy(points)).numpy()
    assert found.shape == (3, 2, 28)
    for number, (one, other) in enumerate(DISTANCES):
        between = points[:, :, list(one)].mean(2) - points[:, :, list(other)].mean(2)
        np.testing.assert_allclose(found[..., number], np.hypot(*np.moveaxis(between, -1, 0)))


def test_a_mirrored_face_has_the_same_distances_on_the_other_side() -> None:
    """So that no side was forgotten, nor a number mistaken."""
    assert [MIRRORED[MIRRORED[i]] for i in range(POINTS)] == list(range(POINTS))

    def set_of(pairs: object) -> set[frozenset[frozenset[int]]]:
        return {frozenset(frozenset(place) for place in pair) for pair in pairs}  # type: ignore[attr-defined]

    mirrored = [tuple(tuple(MIRRORED[i] for i in place) for place in pair) for pair in DISTANCES]
    assert set_of(mirrored) == set_of(DISTANCES)
    assert len(set_of(DISTANCES)) == len(DISTANCES) == 28


def test_features_do_not_change_with_place_and_size_of_the_face() -> None:
    torch.manual_seed(0)
    network = LandmarkDistances(16, tiny_config().video).double().eval()
    torch.nn.init.constant_(network.norm.bias, 0.3)  # which no distance at all would get, too
    points = torch.randn(2, 3, POINTS, 2, dtype=torch.float64)
    features = network.norm(distances(points))
    torch.testing.assert_close(
        features, network.norm(distances(3 * points + 0.2)), rtol=1e-4, atol=1e-4
    )
    _, _, faces, lengths = tiny_batch()
    faces = faces.double()
    faces[0, 1] = 0
    encoded = network(faces, lengths)
    expected = network.norm(distances(network.points(faces, lengths)))
    for row, n in enumerate(lengths.tolist()):
        for t in range(faces.shape[1]):
            if t < n and (row, t) != (0, 1):
                torch.testing.assert_close(encoded[row, t], expected[row, t])
            else:
                assert not encoded[row, t].any()


def video_system(network: NetworkConfig) -> ModelConfig:
    video = replace(tiny_config().video, encoder="networks", networks=(network,))
    return replace(tiny_config("video"), video=video)


@pytest.mark.parametrize("known", [True, False], ids=["landmarks", "no landmarks"])
def test_where_it_starts_from_landmarks_these_stay(known: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    file = tmp_path / "landmarks.safetensors"
    teacher = LandmarkDistances(16, tiny_config().video)
    state = {name: x.contiguous() for name, x in teacher.state_dict().items()}
    save_file(state, file)
    config = video_system(NetworkConfig("landmarks", file if known else None))
    model = build_model(config, bins=20, face_size=16, classes=4)
    start_weights(model, config)
    network = model.video.encoder.networks[0]
    before = {name: x.clone() for name, x in network.state_dict().items()}
    assert all(torch.equal(before[name], x) for name, x in state.items()) == known
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        model.train()
        model(*tiny_batch()).logits.square().sum().backward()
        optimizer.step()
    changed = {n.split(".")[0] for n, x in network.state_dict().items() if (x != before[n]).any()}
    assert changed == ({"norm"} if known else {"norm", "find"})
