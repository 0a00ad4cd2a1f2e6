"""Permutation alignment: what may change its order, permuted copies that come back, and two really trained networks."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import state_of
from edgesmith.compressor.fusion.align import align, permutable, permuted
from edgesmith.compressor.fusion.merging import Mix, Soup
from edgesmith.core.task import Task
from tests.examples_at import digits_example

from ..conftest import Depthwise

IMAGES = {"image": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


class LeNet(nn.Module):
    """Convolutions and a flatten, so that four places of a linear layer belong to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class Joined(nn.Module):
    """Two branches side by side, a grouped convolution, heads and a tied layer: much that may not be permuted."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.grouped = nn.Conv2d(14, 16, 3, groups=2)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1))
        tokens = self.grouped(x).flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens)[0]
        return self.head(functional.gelu(self.wide(tokens.mean(1))))


def residual() -> nn.Module:
    module: nn.Module = digits_example().DigitsNet(16)
    return module


NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet": LeNet, "residual": residual, "depthwise": Depthwise}


def randomly_permuted(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The same function with every group of channels in another order."""
    state, generator = state_of(module), torch.Generator().manual_seed(seed)
    for group in permutable(module, IMAGES):
        state = permuted(state, group, torch.randperm(group.channels, generator=generator))
    return state


def with_seen(module: nn.Module) -> nn.Module:
    """Batch norms that know some data."""
    for _ in range(5):
        module.train()(IMAGES["image"])
    return module.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_copy_comes_back_exactly(name: str) -> None:
    torch.manual_seed(1)
    module = with_seen(NETWORKS[name]())
    groups, state = permutable(module, IMAGES), state_of(module)
    other = randomly_permuted(module, 2)
    assert sum(not torch.equal(other[key], tensor) for key, tensor in state.items()) > 4
    twin = NETWORKS[name]().eval()
    twin.load_state_dict(other)
    torch.testing.assert_close(twin(IMAGES["image"]), module(IMAGES["image"]), rtol=1e-4, atol=1e-5)
    back, moved = align(other, state, groups)
    assert moved > 0.8 * sum(group.channels for group in groups)
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key
    merged = Soup()(Mix(members=[back, state], shares=[0.5, 0.5], names=["a", "b"]))
    twin.load_state_dict(dict(merged))
    torch.testing.assert_close(twin(IMAGES["image"]), module(IMAGES["image"]))


def test_what_may_change_its_order() -> None:
    """Every hidden group of these, residual streams as one; never the output's channels."""
    found = {name: {g.root: g.channels for g in permutable(make(), IMAGES)} for name, make in NETWORKS.items()}
    assert found["lenet"] == {"features.0": 12, "features.3": 24, "classifier.0": 48}
    assert found["residual"] == {
        "stem": 16, "stage1.0.conv1": 16, "stage1.1.conv1": 16, "stage2.0.conv1": 32, "stage2.0.project.0": 32,
        "stage2.1.conv1": 32,
    }  # fmt: skip
    assert set(found["depthwise"].values()) == {16, 32}


def test_what_knows_its_channels_by_number_keeps_them() -> None:
    assert [group.root for group in permutable(Joined(), IMAGES)] == ["wide"]


def test_an_untrained_network_is_not_taken_for_symmetric() -> None:
    """Gains of zero, as residual blocks start with, would make any order look right."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(64, 8)
            self.gain = nn.Parameter(torch.zeros(8))
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gain * self.inside(x.flatten(1)))

    assert permutable(Gated(), IMAGES) == []


def trained(task: Task, seed: int) -> LeNet:
    torch.manual_seed(seed)
    module = LeNet()
    images, labels = torch.tensor(task.train.inputs["image"]), torch.tensor(task.train.labels)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for step in range(400):
        chosen = torch.randint(0, len(images), (64,))
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 400)
        optimizer.zero_grad()
        functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return module.eval()


def test_networks_from_different_starts_lose_less_when_aligned(task: Task) -> None:
    """Three pairs: each half way between two trained LeNets."""
    modules = [trained(task, seed) for seed in range(3)]
    images, labels = torch.tensor(task.validation.inputs["image"]), torch.tensor(task.validation.labels)

    def right(state: Any) -> float:
        merged = LeNet()
        merged.load_state_dict(state)
        return float((merged(images).argmax(1) == labels).float().mean())

    assert min(right(state_of(module)) for module in modules) > 0.96
    groups, losses = permutable(modules[0], IMAGES), []
    for a, b in itertools.combinations([state_of(module) for module in modules], 2):
        aligned, _ = align(b, a, groups)
        assert right(aligned) == right(b)
        soups = [Soup()(Mix(members=[a, other], shares=[0.5, 0.5], names=["a", "b"])) for other in (b, aligned)]
        losses.append([right(a) - right(soup) for soup in soups])
    naive, matched = torch.tensor(losses).mean(0).tolist()
    assert matched < 0.5 * naive
