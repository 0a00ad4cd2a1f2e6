"""How long a network takes at other widths: a sum over its layers, fitted to measurements of whole networks.

A layer's time grows with the product of its input and its output width, what stands between layers with one width, and
every kernel costs something at any width. Kernels work on blocks of channels, so that widths count in whole blocks. The
model is fitted to the time of whole deployed networks (as they fuse, in their own runtime), never to single layers.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import scipy
import torch
from torch import nn

from .coupling import CoupledChannels, Example, channel_rows

Product = tuple[str, ...]  # names of groups or blocks whose shares are multiplied; none: always 1
_STEPS = (1, 4, 8, 16, 32)  # channels that a kernel may take at once
_PULLS = (0.003, 0.03, 0.3)  # how much a fit keeps to what multiply-adds suggest
_FOLDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is left of a network: channels of each group (those not named keep all), and blocks taken out."""

    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)  # root -> channels
    gone: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the time: a weighted sum of products of shares, 1 in the whole network."""

    name: str
    products: Mapping[Product, float]
    expected: float  # its part of the whole time before anything is measured

    def value(self, shares: Mapping[str, float]) -> float:
        """At these shares of what there was, by group and block; those not named count as 1."""
        return sum(
            weight * math.prod(shares.get(name, 1.0) for name in product) for product, weight in self.products.items()
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """What may change in a network, and what its time is made of."""

    channels: Mapping[str, int]  # root of a group that may be pruned -> its channels
    inner: Mapping[str, tuple[str, ...]]  # block that may leave -> roots of the groups that leave with it
    terms: tuple[Term, ...]
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)  # root -> of one channel; not named: 1

    def shares(self, plan: Plan, step: int = 1) -> dict[str, float]:
        """The share that is left of every group and block, with widths counted in whole steps."""
        left = {
            root: _whole(plan.kept.get(root, full) * self.rows.get(root, 1), step)
            / _whole(full * self.rows.get(root, 1), step)
            for root, full in self.channels.items()
        }
        for block in self.inner:
            left[block] = 0.0 if block in plan.gone else 1.0
        return left | {root: 0.0 for block in plan.gone for root in self.inner[block]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """A fitted model; times are in parts of the whole network's."""

    structure: Structure
    step: int
    weights: tuple[float, ...]  # of the terms
    error: float  # median relative error on measurements that a fit had not seen (cross-validation)

    def predict(self, plan: Plan) -> float:
        """Time of the network that this plan leaves, over the time of the whole one."""
        shares = self.structure.shares(plan, self.step)
        return sum(weight * term.value(shares) for weight, term in zip(self.weights, self.structure.terms, strict=True))


def structure_of(
    module: nn.Module,
    example: Example,
    groups: Sequence[CoupledChannels],
    prunable: Collection[str],
    blocks: Sequence[str],
) -> Structure:
    """Read terms and choices off a module.

    Args:
        module: on the CPU; not changed.
        groups: all of them (see `coupling.find`).
        prunable: roots of those that may be pruned.
        blocks: that may leave (see `blocks.find`). One stays whose input and output may come to differ in width, or
            with a layer whose time would be a product of three.
    """
    inner = {block: _inner(block, groups, prunable) for block in blocks}
    positions = _positions(module, example)
    layers = {name: layer for name, layer in module.named_modules() if name in positions}
    rows = {
        name: (_rows(layer, name, "in", groups), _rows(layer, name, "out", groups)) for name, layer in layers.items()
    }
    products = {name: _products(*rows[name], set(prunable)) for name in layers}
    along = {
        name: block
        for block, roots in inner.items()
        for name in layers
        if name.startswith(f"{block}.") and not _belongs(rows[name], roots)
    }
    stays = {block for name, block in along.items() if any(len({*each, block}) > 2 for each in products[name])}
    for block in blocks:
        outside = _outside(block, layers, groups, rows)
        if len(outside) > 1 and outside & set(prunable):  # what comes in is of another group than what goes out
            stays.add(block)
    free = {block: roots for block, roots in inner.items() if block not in stays}
    for name, block in along.items():
        if block in free:
            products[name] = {tuple(sorted((*each, block))): part for each, part in products[name].items()}
    work = {name: layer.weight.numel() * positions[name] for name, layer in layers.items()}
    terms = [Term(name="always", products={(): 1.0}, expected=0.15)]
    channels = {group.root: group.channels for group in groups if group.root in prunable}
    terms += [Term(name=f"block {block}", products={(block,): 1.0}, expected=0.05 / len(free)) for block in free]
    terms += [Term(name=f"width {root}", products={(root,): 1.0}, expected=0.2 / len(channels)) for root in channels]
    terms += [
        Term(name=name, products=products[name], expected=0.6 * work[name] / sum(work.values())) for name in layers
    ]
    rows_of = {group.root: group.layout.size for group in groups}
    return Structure(channels=channels, inner=free, terms=tuple(terms), rows=rows_of)


def fit(structure: Structure, plans: Sequence[Plan], times: Sequence[float]) -> LatencyModel:
    """Fit to measured times, by relative error; the step and the pull towards the expected are cross-validated.

    Args:
        plans: that were measured.
        times: of each, over the time of the whole network.
    """
    measured = np.asarray(times)
    best: tuple[float, int, float] | None = None
    for step, pull in itertools.product(_STEPS, _PULLS):
        features = _features(structure, plans, step)
        errors = np.empty(len(plans))
        for fold in range(min(_FOLDS, len(plans))):
            seen = np.arange(len(plans)) % _FOLDS != fold
            weights = _solve(structure, features[seen], measured[seen], pull)
            errors[~seen] = np.abs(features[~seen] @ weights / measured[~seen] - 1)
        score = float(np.sqrt(np.mean(errors**2)))
        if best is None or score < best[0]:
            best, error = (score, step, pull), float(np.median(errors))
    assert best is not None
    _, step, pull = best
    weights = _solve(structure, _features(structure, plans, step), measured, pull)
    return LatencyModel(structure=structure, step=step, weights=tuple(weights.tolist()), error=error)


def _features(structure: Structure, plans: Sequence[Plan], step: int) -> np.ndarray:
    shares = [structure.shares(plan, step) for plan in plans]
    return np.array([[term.value(each) for term in structure.terms] for each in shares])


def _solve(structure: Structure, features: np.ndarray, times: np.ndarray, pull: float) -> np.ndarray:
    """Non-negative weights of least squared relative error, with a pull towards what is expected of each term."""
    expected = np.array([term.expected for term in structure.terms])
    scale = expected + 1e-3
    rows = np.vstack([features / times[:, None], np.diag(pull / scale)])
    weights: np.ndarray = scipy.optimize.nnls(rows, np.concatenate([np.ones(len(times)), pull * expected / scale]))[0]
    return weights


def _whole(channels: int, step: int) -> int:
    return math.ceil(channels / step) * step


def _inner(block: str, groups: Sequence[CoupledChannels], among: Collection[str]) -> tuple[str, ...]:
    """Groups all of whose layers are in a block."""
    return tuple(
        group.root
        for group in groups
        if group.root in among and all(member.layer.startswith(f"{block}.") for member in group.members)
    )


def _outside(
    block: str,
    layers: Mapping[str, nn.Module],
    groups: Sequence[CoupledChannels],
    rows: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]],
) -> set[str]:
    """Groups of a block's layers that outlive it, and those that nothing in it reads; "" for channels of none."""
    found: set[str] = set()
    for name in (name for name in layers if name.startswith(f"{block}.")):
        inputs, outputs = rows[name]
        depthwise = 1 < getattr(layers[name], "groups", 1) == layers[name].out_channels  # it reads what it writes
        found |= set(outputs) | (set() if depthwise else set(inputs))
    read = {group.root for group in groups if any(member.kind == "in" for member in group.members)}
    return found - set(_inner(block, groups, read))


def _positions(module: nn.Module, example: Example) -> dict[str, int]:
    """Name of every convolution and linear layer that runs -> how often its weight is applied to one sample."""
    found: dict[str, int] = {}

    def note(name: str, layer: nn.Module, result: torch.Tensor) -> None:
        axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else result.ndim - 1
        found[name] = found.get(name, 0) + result[0].numel() // result.shape[axis]

    handles = [
        layer.register_forward_hook(lambda layer, _, result, name=name: note(name, layer, result))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    try:
        with torch.no_grad():
            module.eval()(*example.values())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _rows(layer: nn.Module, name: str, kind: str, groups: Sequence[CoupledChannels]) -> dict[str, float]:
    """Group -> its share of the layer's channels on that side; "" for those of no group."""
    total = len(channel_rows(layer, kind, layer.weight))  # type: ignore[arg-type]  # a layer with a weight
    counts = {
        group.root: len(member.rows)
        for group in groups
        for member in group.members
        if member.layer == name and member.kind == kind
    }
    shares = {root: count / total for root, count in counts.items()}
    rest = 1 - sum(shares.values())
    return shares | ({"": rest} if rest > 1e-9 else {})


def _belongs(sides: tuple[Mapping[str, float], Mapping[str, float]], roots: Collection[str]) -> bool:
    """Whether nothing is left of a layer once these groups are gone."""
    return any(set(side) <= set(roots) for side in sides)


def _products(
    inputs: Mapping[str, float], outputs: Mapping[str, float], known: Collection[str]
) -> dict[Product, float]:
    found: dict[Product, float] = {}
    for (first, a), (second, b) in itertools.product(inputs.items(), outputs.items()):
        product = tuple(sorted(name for name in (first, second) if name in known))
        found[product] = found.get(product, 0.0) + a * b
    return found
