"""Occlusion maps of models whose map is known, and agreement by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.benches.audits.attribution import agreement, cells, missing, occlusion_maps
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.sessions.torch_session import TorchSession


class Linear(nn.Module):
    """Two classes; the first is a weighted sum of all pixels of all channels."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        first = (x * self.weights).flatten(1).sum(1) * scale
        return torch.stack([first, -first], 1)


def test_an_occlusion_map_of_a_linear_model_is_its_weights_times_the_distance_from_the_mean() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((2, 16, 24)).astype(np.float32)
    inputs = {"x": rng.standard_normal((5, 2, 16, 24)).astype(np.float32), "scale": np.arange(1, 6, dtype=np.float32)}
    specs = (
        TensorSpec(name="x", dtype="float32", shape=("batch", 2, 16, 24)),
        TensorSpec(name="scale", dtype="float32", shape=("batch",)),
    )
    session = TorchSession(Linear(weights), specs, ("logits",))
    features, targets = cells((2, 16, 24), False), np.array([0, 1, 0, 1, 0])
    found = occlusion_maps(session, inputs, "x", "logits", targets, features)
    effect = weights * (inputs["x"] - inputs["x"].mean(0)) * inputs["scale"][:, None, None, None]
    wanted = effect.reshape(5, 2, 8, 2, 12, 2).sum((1, 3, 5)).reshape(5, 96) * np.where(targets, -1, 1)[:, None]
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_cells() -> None:
    assert cells((3, 8, 8), False).shape == (1, 8, 8) and cells((3, 8, 8), False).max() == 63
    np.testing.assert_array_equal(cells((32, 32, 3), True)[..., 0], cells((3, 32, 32), False)[0])
    assert cells((1, 32, 36), False)[0, 0].tolist() == [i // 4 for i in range(36)]
    assert cells((5,), False).tolist() == [0, 1, 2, 3, 4]
    assert cells((1, 4, 4), False).max() == 15, "a small image has a cell for each pixel"


def test_agreement_by_hand() -> None:
    first = np.array([np.arange(10.0), np.arange(10.0), np.zeros(10), np.arange(10.0)])
    second = np.array([2 * np.arange(10.0) + 1, -np.arange(10.0), np.arange(10.0), np.arange(10.0)])
    second[3, [8, 9]] = [9.0, 8.0]
    found = agreement(first, second, np.array([3, 5, 7, 9]), 0.95)
    assert found is not None
    swapped = 1 - 6 * 2 / (10 * 99)  # Spearman's formula: two ranks differ by one
    assert (found.samples, found.left_out, found.features, found.top) == (3, 1, 10, 1)
    assert found.correlation.value == pytest.approx((1 - 1 + swapped) / 3)
    assert found.overlap.value == pytest.approx(2 / 3), "the strongest counts by its size, whatever its sign"
    assert (found.worst_sample, found.worst_correlation) == (5, pytest.approx(-1.0))
    assert found.correlation.low >= -1 and found.correlation.high <= 1
    same = agreement(first, first, np.arange(4), 0.95)
    assert same is not None and same.correlation.low == pytest.approx(1.0) and same.overlap.low == 1.0
    assert agreement(first[2:], second[2:], np.array([7, 9]), 0.95) is None


def test_without_captum_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing() == 'captum is not installed: pip install "edgesmith[audit]"'
