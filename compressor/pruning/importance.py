"""How much a channel matters. Each rule is a pure function of one layer's rows; `score` adds up a group's layers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from .channel_statistics import Statistics
from .coupling import CoupledChannels, channel_rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What a rule may look at: the rows of one layer that belong to a group of coupled channels."""

    kind: Literal["out", "in", "norm"]
    weight: torch.Tensor  # (R, K)
    taylor: torch.Tensor | None  # (R,) mean over batches of (sum over the row of gradient * weight) ** 2
    activation: torch.Tensor | None  # (R,) mean absolute value of the input the row reads; "in" members only
    energy: torch.Tensor | None  # (R,) mean square of that input
    curvature: torch.Tensor | None  # (R,) half of w . H w for the row's weights w and the loss's Hessian H
    generator: torch.Generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """A rule `rows -> (R,)` scores, higher is more important, or None where the rule does not speak of such a layer."""

    rule: Callable[[Rows], torch.Tensor | None]
    needs: Literal["nothing", "gradients", "activations", "curvature"] = "nothing"
    per_sample: bool = False  # its gradients are those of single samples
    comparable: bool = False  # its scores rank the channels of different layers as they are


def magnitude_l1(rows: Rows) -> torch.Tensor | None:
    """Sum of absolute weights (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""
    return None if rows.kind == "norm" else rows.weight.abs().sum(1)


def magnitude_l2(rows: Rows) -> torch.Tensor | None:
    """Sum of squared weights, over the coupled layers (group norm of DepGraph, CVPR 2023)."""
    return None if rows.kind == "norm" else rows.weight.square().sum(1)


def taylor(rows: Rows) -> torch.Tensor | None:
    """First-order Taylor estimate of the squared change in loss (Molchanov et al., CVPR 2019, eq. 8)."""
    return rows.taylor


def activation(rows: Rows) -> torch.Tensor | None:
    """Mean absolute activation where the channel is read (Molchanov et al., ICLR 2017, section 2.2)."""
    return rows.activation


def batch_norm_scale(rows: Rows) -> torch.Tensor | None:
    """Absolute batch-norm scale (Liu et al., Network Slimming, ICCV 2017)."""
    return rows.weight.abs().squeeze(1) if rows.kind == "norm" else None


def reconstruction(rows: Rows) -> torch.Tensor | None:
    """Squared error of what the readers compute without the channel: energy read times squared weights reading it.

    The aim of ThiNet (Luo et al., ICCV 2017); exact where a reader's taps see unrelated values.
    """
    return None if rows.energy is None else rows.energy * rows.weight.square().sum(1)


def hessian(rows: Rows) -> torch.Tensor | None:
    """Second-order estimate of the change in loss (LeCun et al., Optimal Brain Damage, NIPS 1989, eq. 5)."""
    return None if rows.curvature is None else rows.curvature.clamp(min=0)


def lamp(rows: Rows) -> torch.Tensor | None:
    """Squared weight over that of all channels left when smaller ones are gone (LAMP, Lee et al., ICLR 2021)."""
    if rows.kind == "norm":
        return None
    values, order = rows.weight.square().sum(1).sort(descending=True)
    return torch.empty_like(values).index_copy_(0, order, values / values.cumsum(0).clamp(min=1e-30))


def fpgm(rows: Rows) -> torch.Tensor | None:
    """Distance to all other filters: near their geometric median a filter can be replaced (He et al., CVPR 2019)."""
    return torch.cdist(rows.weight, rows.weight).sum(1) if rows.kind == "out" else None


def random(rows: Rows) -> torch.Tensor | None:
    """Uniform noise from the run's seed: the floor every other rule must beat."""
    return torch.rand(len(rows.weight), generator=rows.generator) if rows.kind == "out" else None


IMPORTANCES: dict[str, Importance] = {
    "magnitude-l1": Importance(rule=magnitude_l1),
    "magnitude-l2": Importance(rule=magnitude_l2),
    "taylor": Importance(rule=taylor, needs="gradients"),
    "activation": Importance(rule=activation, needs="activations"),
    "bn-scale": Importance(rule=batch_norm_scale),
    "reconstruction": Importance(rule=reconstruction, needs="activations"),
    # Mean squared gradient of single samples, the Fisher information's diagonal (Theis et al., 2018, arXiv:1801.05787).
    "fisher": Importance(rule=taylor, needs="gradients", per_sample=True),
    "hessian": Importance(rule=hessian, needs="curvature"),
    "lamp": Importance(rule=lamp, comparable=True),
    "fpgm": Importance(rule=fpgm),
    "random": Importance(rule=random),
}


def score(
    module: nn.Module,
    group: CoupledChannels,
    importance: Importance,
    statistics: Statistics,
    generator: torch.Generator,
) -> torch.Tensor | None:
    """Scores of a group's channels `(channels,)`, with mean 1 so that groups can be ranked against each other.

    A rule whose scores can be compared as they are is averaged over the layers it speaks of.

    Returns:
        None where the rule speaks of none of the group's layers (bn-scale without a batch norm).
    """
    total, spoke = torch.zeros(group.channels), 0
    layers: Mapping[str, nn.Module] = dict(module.named_modules())
    for member in group.members:
        gradients = statistics.taylor.get((member.layer, member.kind))
        curvature = statistics.curvature.get((member.layer, member.kind))
        activations, energy = (
            each.get(member.layer) if member.kind == "in" else None
            for each in (statistics.activation, statistics.energy)
        )
        layer: Any = layers[member.layer]
        rows = Rows(
            kind=member.kind,
            weight=channel_rows(layer, member.kind, layer.weight.detach())[member.rows].cpu().float(),
            taylor=None if gradients is None else gradients[member.rows],
            activation=None if activations is None else activations[member.rows],
            energy=None if energy is None else energy[member.rows],
            curvature=None if curvature is None else curvature[member.rows],
            generator=generator,
        )
        values = importance.rule(rows)
        if values is not None:
            total.index_add_(0, member.channels, values)
            spoke += 1
    if not spoke:
        return None
    if importance.comparable:
        return total / spoke
    mean = total.mean()
    return total / mean if float(mean) > 0 else torch.ones_like(total)
