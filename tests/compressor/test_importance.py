"""Importances: reference values, and the claim each paper makes on a case small enough to check."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor import channel_statistics, coupling
from edgesmith.compressor.allocation import global_ranking, per_group, uniform
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.channel_statistics import Statistics
from edgesmith.compressor.coupling import CoupledChannels
from edgesmith.compressor.importance import IMPORTANCES, Importance, score
from edgesmith.core.task import ArraySplit, Task


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3, bias=False)
        self.second = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.5], [0.0, 0.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def group_of(module: nn.Module, root: str, example: Mapping[str, torch.Tensor]) -> CoupledChannels:
    return next(group for group in coupling.find(module, example) if group.root == root)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("magnitude-l1", [3.0 + 2.0, 1.0 + 2.0, 0.0 + 1.0]),
        ("magnitude-l2", [5.0 + 2.0, 0.5 + 2.0, 0.0 + 1.0]),
    ],
)
def test_magnitude_adds_up_what_writes_and_what_reads_a_channel(name: str, raw: list[float]) -> None:
    module, example = Pair(), {"x": torch.ones(1, 2)}
    values = score(module, group_of(module, "first", example), IMPORTANCES[name], Statistics(), torch.Generator())
    assert values is not None
    np.testing.assert_allclose(values, np.array(raw) / np.mean(raw), rtol=1e-6)


def test_activation_is_the_mean_absolute_value_that_is_read() -> None:
    module, example = Pair(), {"x": torch.ones(1, 2)}
    group = group_of(module, "first", example)
    batches = [({"x": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}, None), ({"x": torch.tensor([[2.0, 2.0]])}, None)]
    statistics = channel_statistics.activations(module, [group], batches)
    np.testing.assert_allclose(statistics.activation["second"], [(1 + 2 + 2) / 3, (0.5 + 0.5 + 2) / 3, 0.0], rtol=1e-6)


def test_taylor_is_the_squared_gradient_times_weight_per_batch() -> None:
    module, example = Pair(), {"x": torch.ones(1, 2)}
    group = group_of(module, "first", example)
    x = torch.tensor([[1.0, 3.0]])

    def loss(inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        return module(inputs["x"]).sum()

    statistics = channel_statistics.gradients(module, [group], [({"x": x}, None), ({"x": 2 * x}, None)], loss)
    # d loss / d hidden = column sums of the second weight = (2, 0, 1); hidden = (-5, 2, 0); their product, squared
    expected = np.array([(2 * -5.0) ** 2, 0.0, 0.0])
    np.testing.assert_allclose(statistics.taylor["first", "out"], expected * (1 + 4) / 2, atol=1e-6)
    np.testing.assert_allclose(statistics.taylor["second", "in"], expected * (1 + 4) / 2, atol=1e-6)
    assert module.first.weight.grad is None


def test_taylor_ranks_by_what_the_loss_loses(task: Task, original: Candidate) -> None:
    """Molchanov et al. 2019, figure 2: the first-order estimate correlates with the loss really lost, magnitude less so."""
    module = original.module()
    groups = [group for group in coupling.find(module, original.example) if group.root != "head"]
    split = task.train
    assert isinstance(split, ArraySplit) and split.labels is not None
    images, labels = torch.tensor(split.inputs["image"]), torch.tensor(split.labels)

    def loss(inputs: Mapping[str, torch.Tensor], wanted: torch.Tensor | None) -> torch.Tensor:
        assert wanted is not None
        return functional.cross_entropy(module(inputs["image"]), wanted)

    batches = [({"image": images[i : i + 64]}, labels[i : i + 64]) for i in range(0, 512, 64)]
    statistics = channel_statistics.gradients(module, groups, batches, loss)
    correlations: dict[str, list[float]] = {"taylor": [], "magnitude-l1": [], "random": []}
    for group in groups:
        lost = torch.tensor([loss_without(module, group, channel, images, labels) for channel in range(group.channels)])
        for name, found in correlations.items():
            values = score(module, group, IMPORTANCES[name], statistics, torch.Generator().manual_seed(0))
            assert values is not None
            found.append(rank_correlation(values, lost.abs()))
    means = {name: float(np.mean(found)) for name, found in correlations.items()}
    assert means["taylor"] > 0.6
    assert means["taylor"] > means["magnitude-l1"] > means["random"]


def loss_without(
    module: nn.Module, group: CoupledChannels, channel: int, images: torch.Tensor, labels: torch.Tensor
) -> float:
    """The change in loss when everything that reads the channel reads zero."""
    layers = dict(module.named_modules())

    def silence(rows: torch.Tensor):  # type: ignore[no-untyped-def]
        def hook(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            values = arguments[0].clone()
            values[:, rows] = 0
            return (values,)

        return hook

    with torch.no_grad():
        whole = float(functional.cross_entropy(module(images), labels))
        handles = [
            layers[member.layer].register_forward_pre_hook(silence(member.rows[member.channels == channel]))
            for member in group.members
            if member.kind == "in"
        ]
        without = float(functional.cross_entropy(module(images), labels))
    for handle in handles:
        handle.remove()
    return without - whole


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rho."""
    ranks = np.stack([np.argsort(np.argsort(values.numpy())) for values in (first, second)])
    return float(np.corrcoef(ranks)[0, 1])


def test_batch_norm_scale_says_nothing_without_a_batch_norm() -> None:
    module, example = Pair(), {"x": torch.ones(1, 2)}
    assert (
        score(module, group_of(module, "first", example), IMPORTANCES["bn-scale"], Statistics(), torch.Generator())
        is None
    )


def test_scores_of_a_group_have_mean_one() -> None:
    module, example = Pair(), {"x": torch.ones(1, 2)}
    constant = Importance(rule=lambda rows: torch.full((len(rows.weight),), 7.0))
    values = score(module, group_of(module, "first", example), constant, Statistics(), torch.Generator())
    np.testing.assert_allclose(values, [1, 1, 1])  # type: ignore[arg-type]


def test_allocations() -> None:
    scores = {"a": torch.tensor([0.1, 0.2, 1.7, 2.0]), "b": torch.tensor([0.9, 1.1])}
    assert uniform(scores, 0.5, {}) == {"a": 2.0, "b": 1.0}
    assert global_ranking(scores, 0.5, {}) == {"a": 2.0, "b": 1.0}
    assert global_ranking(scores, 2 / 6, {}) == {"a": 2.0, "b": 2.0}
    assert global_ranking(scores, 0.0, {}) == {"a": 4.0, "b": 2.0}
    assert per_group(scores, 0.25, {"a": 2.0}) == {"a": 2.0, "b": 1.5}
