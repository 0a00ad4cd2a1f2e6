"""Merging by edgesmith and by published implementations, on the same weights: ``python benches/peers/merging.py``.

SLERP by mergekit, Fisher merging and RegMean by FusionBench, permutation alignment by rebasin. Rules with a formula
must give the same numbers; alignment is a heuristic, so the accuracy halfway between the two networks is compared.
Networks are trained here, on scikit-learn's digits, in seconds. PEFT's TIES, task arithmetic and DARE are compared in
the tests. The three packages need an environment of their own: ``pip install . mergekit fusion-bench rebasin torchview
graphviz scikit-learn``.
"""

import copy
import importlib.metadata
from collections.abc import Callable, Sequence

import torch
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from mergekit.merge_methods.slerp import slerp
from rebasin import PermutationCoordinateDescent
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from edgesmith.compressor.fusion import align
from edgesmith.compressor.fusion.merge_statistics import grams
from edgesmith.compressor.fusion.merging import Fisher, Mix, RegMean, Slerp, State, averaged

_ALPHA = 0.9
_SEEDS = range(5)


def perceptron() -> nn.Module:
    """Without biases: FusionBench averages a bias, where edgesmith counts it as a weight of an input that is 1.

    Without ReLUs, whose dead units leave a Gram matrix singular, which FusionBench inverts as it is.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64, bias=False),
        nn.GELU(),
        nn.Linear(64, 32, bias=False),
        nn.GELU(),
        nn.Linear(32, 10, bias=False),
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Digits:
    """1,200 images to train on and 597 to test on, `(n, 1, 8, 8)` in [0, 1]."""

    def __init__(self) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(data.target)
        self.train, self.test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])

    def trained(self, make: Callable[[], nn.Module], seed: int, epochs: int = 40) -> nn.Module:
        torch.manual_seed(seed)
        module, (x, y) = make(), self.train
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x)), 64):
                optimizer.zero_grad()
                torch.autograd.backward(functional.cross_entropy(module(x[batch]), y[batch]))
                optimizer.step()
        return module.eval()

    @torch.no_grad()
    def accuracy(self, module: nn.Module) -> float:
        x, y = self.test
        return float((module(x).argmax(1) == y).float().mean())


def double(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().double() for name, tensor in module.state_dict().items()}


def differs(ours: State, theirs: State) -> float:
    """Largest difference, as a share of the largest weight."""
    return max(
        float((ours[name] - theirs[name].double()).abs().max() / theirs[name].double().abs().max()) for name in ours
    )


def formulas(data: Digits) -> list[tuple[str, str, float]]:
    """Rule, whose, and the largest difference."""
    modules = [data.trained(perceptron, seed) for seed in (0, 1)]
    members = [double(module) for module in modules]
    names = list(members[0])
    mix = Mix(members=members, shares=[0.3, 0.7], names=["a", "b"])
    arc = {
        name: slerp(torch.tensor(0.7), members[0][name].reshape(1, -1), members[1][name].reshape(1, -1)).reshape(
            members[0][name].shape
        )
        for name in names
    }
    generator = torch.Generator().manual_seed(0)
    fishers = [
        {name: torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.01 for name, tensor in m.items()}
        for m in members
    ]
    lists = {name: [member[name] for member in members] for name in names}
    shares = torch.tensor(mix.shares, dtype=torch.float64)
    by_fisher = merging_with_fisher_weights(lists, fishers, shares, False, 0.0)
    half = Mix(members=members, shares=[0.5, 0.5], names=["a", "b"])
    # Some pixels are zero in every image; noise leaves no input without information.
    noise = torch.randn(data.train[0].shape, generator=generator)
    inputs = [({"x": part}, None) for part in torch.split(data.train[0] + 0.1 * noise, 64)]
    products = [grams(module, inputs) for module in modules]
    by_regression = merging_with_regmean_weights(
        lists, [{layer: gram[0] for layer, gram in each.items()} for each in products], _ALPHA
    )
    return [
        ("slerp", "mergekit", differs(Slerp()(mix), arc)),
        ("fisher", "fusion-bench", differs(Fisher()(_with(mix, fishers=fishers)), by_fisher)),
        ("regmean", "fusion-bench", differs(RegMean(alpha=_ALPHA)(_with(half, grams=products)), by_regression)),
    ]


def _with(mix: Mix, **changes: Sequence[State]) -> Mix:
    return Mix(**{**vars(mix), **changes})


def halfway(data: Digits, make: Callable[[], nn.Module], seed: int) -> tuple[float, float, float, float]:
    """Test accuracy of the mean of the two networks' own, of their average, and of it after either's alignment."""
    a, b = data.trained(make, 2 * seed), data.trained(make, 2 * seed + 1)
    example = {"x": data.train[0][:2]}
    ours, _ = align.align(b.state_dict(), a.state_dict(), align.permutable(a, example))
    theirs = copy.deepcopy(b)
    PermutationCoordinateDescent(a, theirs, data.train[0][:2]).rebasin()

    def between(other: State) -> float:
        middle = make().eval()
        middle.load_state_dict(averaged([a.state_dict(), other], [0.5, 0.5]))
        return data.accuracy(middle)

    alone = (data.accuracy(a) + data.accuracy(b)) / 2
    return alone, between(b.state_dict()), between(ours), between(theirs.state_dict())


def main() -> None:
    data = Digits()
    torch.set_num_threads(1)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "mergekit", "fusion-bench", "rebasin")}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print("\n| rule | compared with | largest difference, of the largest weight |\n|---|---|---|")
    for rule, peer, worst in formulas(data):
        print(f"| `{rule}` | {peer} | {worst:.1e} |")
    print(
        "\n| network | seeds | each alone | averaged | aligned by edgesmith | by rebasin |\n|---|---|---|---|---|---|"
    )
    for name, make in (("perceptron", perceptron), ("convolutions", convolutions)):
        for seed in _SEEDS:
            found = " | ".join(f"{100 * value:.1f} %" for value in halfway(data, make, seed))
            print(f"| {name} | {2 * seed}, {2 * seed + 1} | {found} |", flush=True)


if __name__ == "__main__":
    main()
