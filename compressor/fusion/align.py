"""Permutation alignment: hidden channels of one network put into the order of another's (Ainsworth et al., 2023).

Networks trained from different starts compute alike with their channels in another order, so that an average of their
weights computes nothing. The channels that have to move together are the coupled channels that pruning removes.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import scipy
import torch
from torch import nn

from ..candidate import state_of
from ..pruning.coupling import CoupledChannels, Example, Member, find
from ..pruning.other_weights import answers, close, randomized

State = Mapping[str, torch.Tensor]
_PASSES = 50  # over all groups; a handful is what it takes
_STATISTICS = ("running_mean", "running_var")  # move along, and say nothing of which channel is which


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Axis:
    """Where the channels of a group lie in one tensor."""

    tensor: str  # name in the state dict
    axis: int
    index: torch.Tensor  # (channels, k): the places along the axis that belong to each channel; flatten makes many


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Permutable:
    """Coupled channels whose order is free: the network's outputs are the same in any."""

    root: str
    channels: int
    axes: tuple[Axis, ...]


def permutable(module: nn.Module, example: Example) -> list[Permutable]:
    """The groups of coupled channels that may change places, in the order of the network.

    Whether one may is tried, with random weights on random inputs: an output's channels may not, nor those of attention
    heads, of grouped convolutions, or whatever a forward pass knows by number.
    """
    trial = randomized(module)
    inputs = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in example.items()}
    expected, found = answers(trial, inputs), []
    for coupled in find(module, example):
        group = _group(module, coupled)
        if group is None or group.channels < 2:
            continue
        moved = copy.deepcopy(trial)
        moved.load_state_dict(permuted(state_of(trial), group, torch.arange(group.channels).roll(1)))
        if all(close(ours, theirs) for ours, theirs in zip(answers(moved, inputs), expected, strict=True)):
            found.append(group)
    return found


def permuted(state: State, group: Permutable, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights with channel `order[c]` of the group where channel `c` was."""
    result = dict(state)
    for axis in group.axes:
        places = torch.arange(state[axis.tensor].shape[axis.axis])
        places[axis.index.flatten()] = axis.index[order].flatten()
        result[axis.tensor] = result[axis.tensor].index_select(axis.axis, places)
    return result


def align(state: State, reference: State, groups: Sequence[Permutable]) -> tuple[dict[str, torch.Tensor], int]:
    """Weight matching: the permutations for which the sum of products of both networks' weights is largest.

    One group after the other is solved as a linear assignment, the others held as they are, until nothing moves
    (Ainsworth et al., algorithm 1). The first pass goes from the input on and looks only at weights whose other
    channels are in order already.

    Returns:
        The weights, and how many channels of all groups have changed their place.
    """
    current = dict(state)
    orders = {group.root: torch.arange(group.channels) for group in groups}
    touching: dict[str, set[str]] = {}
    for group in groups:
        for axis in group.axes:
            touching.setdefault(axis.tensor, set()).add(group.root)
    ordered: set[str] = set()
    for number in range(_PASSES):
        still = True
        for group in groups:
            weights = [axis for axis in group.axes if not axis.tensor.endswith(_STATISTICS)]
            known = [axis for axis in weights if number or touching[axis.tensor] - {group.root} <= ordered]
            gain = torch.stack([_products(reference, current, axis, group.channels) for axis in known or weights]).sum(
                0
            )
            order = torch.tensor(scipy.optimize.linear_sum_assignment(gain, maximize=True)[1])
            better = float((gain.gather(1, order[:, None])[:, 0] - gain.diagonal()).sum())
            if better > 1e-9 * float(gain.abs().sum()):
                current, still = permuted(current, group, order), False
                orders[group.root] = orders[group.root][order]
            ordered.add(group.root)
        if still and number:
            break
    return current, sum(int((order != torch.arange(len(order))).sum()) for order in orders.values())


def _products(reference: State, other: State, axis: Axis, channels: int) -> torch.Tensor:
    """`(channels, channels)`: the inner product of each channel of one with each of the other, in this tensor."""
    rows = [
        state[axis.tensor].double().movedim(axis.axis, 0)[axis.index.flatten()].reshape(channels, -1)
        for state in (reference, other)
    ]
    return rows[0] @ rows[1].T


def _group(module: nn.Module, coupled: CoupledChannels) -> Permutable | None:
    """None where a layer's weights do not lie in the state dict as the layer has them."""
    state = module.state_dict()
    axes: dict[tuple[str, int], dict[int, int]] = {}  # (tensor, axis) -> place -> channel
    for member in coupled.members:
        for tensor, axis in _tensors(module, member):
            if tensor in state:
                places = axes.setdefault((tensor, axis), {})
                places.update(zip(member.rows.tolist(), member.channels.tolist(), strict=True))
    found = []
    for (tensor, axis), places in axes.items():
        of = [[place for place, channel in sorted(places.items()) if channel == c] for c in range(coupled.channels)]
        if len({len(each) for each in of}) != 1 or max(places) >= state[tensor].shape[axis]:
            return None
        found.append(Axis(tensor=tensor, axis=axis, index=torch.tensor(of)))
    return Permutable(root=coupled.root, channels=coupled.channels, axes=tuple(found))


def _tensors(module: nn.Module, member: Member) -> Iterator[tuple[str, int]]:
    """The tensors of a layer that a group's channels lie in, and the axis."""
    layer = module.get_submodule(member.layer)
    transposed = isinstance(layer, nn.Embedding) or bool(getattr(layer, "transposed", False))
    if member.kind == "in":
        yield f"{member.layer}.weight", 0 if transposed else 1
        return
    yield f"{member.layer}.weight", 1 if transposed and member.kind == "out" else 0
    for name in ("bias", *_STATISTICS):
        yield f"{member.layer}.{name}", 0
