"""Importances: reference values, and the claim each paper makes on a case small enough to check."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning import channel_statistics, coupling
from edgesmith.compressor.pruning.allocation import Facts, global_ranking, isomorphic, per_group, uniform
from edgesmith.compressor.pruning.channel_statistics import Statistics
from edgesmith.compressor.pruning.coupling import CoupledChannels
from edgesmith.compressor.pruning.importance import IMPORTANCES, Importance, Rows, fpgm, lamp, score
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
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
    images, labels = torch.tensor(split.inputs["image"][:512]), torch.tensor(split.labels[:512])

    def loss(inputs: Mapping[str, torch.Tensor], wanted: torch.Tensor | None) -> torch.Tensor:
        assert wanted is not None
        return functional.cross_entropy(module(inputs["image"]), wanted)

    batches = [({"image": images[i : i + 64]}, labels[i : i + 64]) for i in range(0, 512, 64)]
    statistics = channel_statistics.gradients(module, groups, batches, loss)
    with torch.no_grad():
        whole = float(functional.cross_entropy(module(images), labels))
    correlations: dict[str, list[float]] = {"taylor": [], "magnitude-l1": [], "random": []}
    for group in groups:
        channels = range(group.channels)
        lost = torch.tensor([loss_without(module, group, channel, images, labels) - whole for channel in channels])
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
    """The loss when everything that reads the channel reads zero."""
    layers = dict(module.named_modules())

    def silence(rows: torch.Tensor):  # type: ignore[no-untyped-def]
        def hook(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            values = arguments[0].clone()
            values[:, rows] = 0
            return (values,)

        return hook

    with torch.no_grad():
        handles = [
            layers[member.layer].register_forward_pre_hook(silence(member.rows[member.channels == channel]))
            for member in group.members
            if member.kind == "in"
        ]
        without = float(functional.cross_entropy(module(images), labels))
    for handle in handles:
        handle.remove()
    return without


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
    assert uniform(scores, 0.5, Facts()) == {"a": 2.0, "b": 1.0}
    assert global_ranking(scores, 0.5, Facts()) == {"a": 2.0, "b": 1.0}
    assert global_ranking(scores, 2 / 6, Facts()) == {"a": 2.0, "b": 2.0}
    assert global_ranking(scores, 0.0, Facts()) == {"a": 4.0, "b": 2.0}
    assert per_group(scores, 0.5, Facts(weights={"a": 2.0})) == {"a": 2.0, "b": 1.5}
    for same in (0.2, 1.0, 5.0):  # weights are relative
        assert per_group(scores, 0.5, Facts(weights=dict.fromkeys("ab", same))) == uniform(scores, 0.5, Facts())


def test_equals_leave_every_group_alike() -> None:
    """With a threshold all of them went at once: of 12 equal channels none was left."""
    scores = {"a": torch.ones(8), "b": torch.ones(4)}
    assert [global_ranking(scores, share, Facts()) for share in (0.25, 0.5)] == [
        {"a": 6.0, "b": 3.0},
        {"a": 4.0, "b": 2.0},
    ]
    dead = {"a": torch.tensor([0.0, 0, 0, 0, 4, 4, 4, 4]), "b": torch.tensor([0.0, 0, 2, 2])}
    assert global_ranking(dead, 3 / 12, Facts()) == {"a": 6.0, "b": 3.0}


def test_kinds_are_ranked_among_themselves() -> None:
    """Fang et al. 2024: where a kind of group has small scores throughout, a global ranking empties it."""
    scores = {"a": torch.tensor([10.0, 20, 30, 40]), "b": torch.tensor([50.0, 60]), "head": torch.tensor([0.1, 0.2])}
    facts = Facts(kinds={"a": "conv", "b": "conv", "head": "attention"})
    assert global_ranking(scores, 0.5, facts) == {"a": 2.0, "b": 2.0, "head": 0.0}
    assert isomorphic(scores, 0.5, facts) == {"a": 1.0, "b": 2.0, "head": 1.0}


def test_groups_of_one_make_are_of_one_kind(original: Candidate) -> None:
    module = original.module()
    kinds = {group.root: coupling.kind_of(module, group) for group in coupling.find(module, original.example)}
    assert kinds["stage1.0.conv1"] == kinds["stage2.1.conv1"] == "BatchNorm2d norm, Conv2d in, Conv2d out"
    assert kinds["stem"] != kinds["stage1.0.conv1"]


def test_hessian_is_the_loss_a_channel_carries_where_the_loss_is_quadratic() -> None:
    """LeCun et al. 1989: exact at a minimum of a quadratic loss whose Hessian is diagonal, where magnitude is not."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    inputs = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.1])) * 2  # unrelated inputs, of very different size
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0, 0], [0, 0, 0, 2.0]]))
        module[1].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]]))
    wanted = module(inputs).detach()
    group = group_of(module, "0", {"x": inputs})

    def loss(given: Mapping[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        return (module(given["x"]) - wanted).square().sum()

    data = [({"x": inputs}, None)] * 400
    found = channel_statistics.curvatures(module, [group], data, loss, torch.Generator().manual_seed(0))
    lost = []
    for channel in range(3):
        changed = copy.deepcopy(module)
        with torch.no_grad():
            changed[0].weight[channel] = 0
            lost.append(float((changed(inputs) - wanted).square().sum()))
    np.testing.assert_allclose(found.curvature["0", "out"], lost, rtol=0.1)
    values = score(module, group, IMPORTANCES["hessian"], found, torch.Generator())
    size = score(module, group, IMPORTANCES["magnitude-l2"], Statistics(), torch.Generator())
    assert values is not None and size is not None
    assert int(values.argmin()) == 2  # the largest weight reads an input that is hardly there
    assert int(size.argmax()) == 2


def test_hessian_ranks_by_the_curvature_at_the_default_count() -> None:
    """Against w . H w, exact: 256 samples in batches of 64; one sign for each weight, once a batch, gave 0.63."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    x, labels = torch.randn(256, 16), torch.randint(0, 5, (256,))
    groups = [group for group in coupling.find(module, {"x": x}) if group.root != "4"]
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), labels).backward()
        optimizer.step()

    def loss(inputs: Mapping[str, torch.Tensor], wanted: torch.Tensor | None) -> torch.Tensor:
        assert wanted is not None
        return functional.cross_entropy(module(inputs["x"]), wanted)

    data = [({"x": x[i : i + 64]}, labels[i : i + 64]) for i in range(0, 256, 64)]
    correlations = []
    for layer in ("0", "2"):
        weight = module.get_parameter(f"{layer}.weight")
        (first,) = torch.autograd.grad(loss({"x": x}, labels), weight, create_graph=True)
        along = (weight.detach() * first).sum(1)
        products = [torch.autograd.grad(value, weight, retain_graph=True)[0][row] for row, value in enumerate(along)]
        exact = 0.5 * torch.stack([weight[row].detach() @ product for row, product in enumerate(products)])
        for seed in (0, 1, 2, 3):
            generator = torch.Generator().manual_seed(seed)
            found = channel_statistics.curvatures(module, groups, data, loss, generator).curvature[layer, "out"]
            correlations.append(rank_correlation(found, exact))
    assert float(np.mean(correlations)) > 0.75


class TwoOutputs(nn.Module):
    """The loss reads the first only; its attention is torch's fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.used, self.unused = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 6)
        self.other = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = self.query(x)
        y = functional.scaled_dot_product_attention(q, q, q)
        return self.used(y), self.other(self.unused(y).relu())


def test_hessian_goes_through_attention_and_past_what_the_loss_does_not_read() -> None:
    torch.manual_seed(0)
    module, x = TwoOutputs(), torch.randn(2, 5, 4)
    groups = coupling.find(module, {"x": x})

    def loss(inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        return module(inputs["x"])[0].square().mean()

    found = channel_statistics.curvatures(module, groups, [({"x": x}, None)], loss, torch.Generator()).curvature
    assert float(found["query", "out"].abs().min()) > 0
    assert torch.equal(found["unused", "out"], torch.zeros(6)) and torch.equal(found["other", "in"], torch.zeros(6))


def test_fisher_squares_the_gradient_of_each_sample(task: Task, original: Candidate, context: Context) -> None:
    """Two samples that pull a channel in opposite directions cancel in a batch, not in the Fisher information."""
    module, example = Pair(), {"x": torch.ones(1, 2)}
    group = group_of(module, "first", example)
    x = torch.tensor([[1.0, 3.0], [-1.0, -3.0]])

    def loss(inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        return module(inputs["x"]).sum(1).mean()

    together = channel_statistics.gradients(module, [group], [({"x": x}, None)], loss)
    alone = channel_statistics.gradients(module, [group], [({"x": row[None]}, None) for row in x], loss)
    assert float(together.taylor["first", "out"].abs().max()) == 0
    assert float(alone.taylor["first", "out"].max()) > 0
    assert IMPORTANCES["fisher"].per_sample
    Prune(id="p", macs_ratio=0.7, importance="fisher", samples=8).run(original, context)


def test_reconstruction_is_what_the_reader_loses() -> None:
    """Luo et al. 2017: of linear readers exactly the squared error of their output without the channel."""
    module, example = Pair(), {"x": torch.ones(1, 2)}
    group = group_of(module, "first", example)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    statistics = channel_statistics.activations(module, [group], [({"x": x}, None)])
    hidden, weight = module.first(x).detach(), module.second.weight.detach()
    lost = [float((hidden[:, [c]] @ weight[:, [c]].T).square().sum(1).mean()) for c in range(3)]
    values = score(module, group, IMPORTANCES["reconstruction"], statistics, torch.Generator())
    assert values is not None
    np.testing.assert_allclose(values, np.array(lost) / np.mean(lost), rtol=1e-5, atol=1e-7)


def test_lamp_leaves_every_layer_its_largest_channel() -> None:
    """Lee et al. 2021: scores of layers of any scale compare, and the last channel of none is taken before all others'."""
    small, large = torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([[10.0], [20.0], [30.0]])

    def rows(weight: torch.Tensor) -> Rows:
        nothing = {"taylor": None, "activation": None, "energy": None, "curvature": None}
        return Rows(kind="out", weight=weight, generator=torch.Generator(), **nothing)

    values = [lamp(rows(weight)) for weight in (small, large)]
    assert values[0] is not None and values[1] is not None
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], torch.tensor([1 / 14, 4 / 13, 1.0]))
    assert IMPORTANCES["lamp"].comparable


def test_fpgm_takes_what_others_can_stand_in_for() -> None:
    """He et al. 2019, figure 1: the filter in the middle goes, though another is smaller."""
    weight = torch.tensor([[1.0, 1.0], [1.2, 1.0], [1.1, 1.05], [0.1, -0.9], [3.0, 3.0]])
    nothing = {"taylor": None, "activation": None, "energy": None, "curvature": None}
    values = fpgm(Rows(kind="out", weight=weight, generator=torch.Generator(), **nothing))
    assert values is not None
    assert int(values.argmin()) in (0, 1, 2)
    assert int(weight.norm(dim=1).argmin()) == 3 and int(values.argmin()) != 3
