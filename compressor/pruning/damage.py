"""What it costs to take channels or a block out: the loss without them, before anything is trained again."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import nn

from .. import replay
from ..candidate import Candidate
from ..data import batches
from ..edit import BlockEdit
from ..learning.losses import task_loss
from ..stage import Context
from ..structure import measure
from .channel_statistics import Batch
from .coupling import CoupledChannels
from .latency_allocation import Damage
from .silenced import zero

_T = TypeVar("_T")
_MEASURED = 4  # widths of a group that are measured; between them the damage is interpolated
_MACS = 2e12  # multiply-adds that measuring may take in all; of a large network fewer samples are run
_FEWEST = 32  # samples


def measure_damage(
    candidate: Candidate,
    groups: Sequence[CoupledChannels],
    widths: Mapping[str, Sequence[int]],
    blocks: Sequence[str],
    scores: Mapping[str, torch.Tensor],
    context: Context,
    samples: int,
    batch_size: int,
) -> Damage:
    """Run the network on training samples without the least important channels of one group, or without one block.

    Batch norms use the statistics of the batch, as if they had been estimated anew. A damage is never below zero, and
    never less at a smaller width.

    Args:
        groups: those in `widths`.
        widths: root -> widths to choose from, falling, the whole one first.
        blocks: that may leave.
        scores: root -> (channels,), higher is more important.
    """
    trials = sum(min(_MEASURED, len(each) - 1) for each in widths.values()) + len(blocks)
    macs = measure(candidate.module(), candidate.example, ()).macs
    count = max(_FEWEST, min(samples, int(_MACS / max(1, trials * macs))))
    data = list(batches(context, "train", count, min(batch_size, count), labelled=True))
    found: dict[str, dict[int, float]] = {}
    module = candidate.module().to(context.machine.device)
    whole = _loss(module, data, context)
    with context.progress.bar(f"damage {context.where}", trials) as advance:
        done = 0
        for group in groups:
            chosen = spread(widths[group.root][1:], _MEASURED)
            measured = {group.channels: 0.0}
            for width in chosen:
                least = torch.tensor(group.least(scores[group.root], group.channels - width))
                measured[width] = _loss(_without_channels(module, group, least), data, context) - whole
                done += 1
                advance(done, group.root)
            found[group.root] = _interpolated(measured, widths[group.root])
        without = {}
        for block in blocks:
            trial = copy.deepcopy(module).cpu()
            replay.apply(trial, candidate.example, [BlockEdit(block=block)])
            without[block] = max(0.0, _loss(trial.to(context.machine.device), data, context) - whole)
            done += 1
            advance(done, block)
    return Damage(groups=found, blocks=without)


def _loss(module: nn.Module, data: Iterable[Batch], context: Context) -> float:
    loss = task_loss(context.task)
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train().momentum = 0.0
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, labels in data:
            size = len(next(iter(inputs.values())))
            total += float(loss(module, inputs, labels)) * size
            count += size
    return total / count


def _without_channels(module: nn.Module, group: CoupledChannels, channels: torch.Tensor) -> nn.Module:
    """A copy in which these channels carry nothing and nobody reads them; what their removal would give."""
    masked = copy.deepcopy(module)
    for member in group.members:
        layer = masked.get_submodule(member.layer)
        rows = member.rows[torch.isin(member.channels, channels)].to(cast(torch.Tensor, layer.weight).device)
        zero(layer, rows, written=member.kind != "in")
    return masked


def spread(values: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of them, the first and the last among these, where there are two."""
    places = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))
    return [values[place] for place in places.tolist()]


def _interpolated(measured: Mapping[int, float], widths: Sequence[int]) -> dict[int, float]:
    known = sorted(measured, reverse=True)
    rising = np.maximum.accumulate([max(0.0, measured[width]) for width in known])
    values = np.interp([-width for width in widths], [-width for width in known], rising)
    return dict(zip(widths, values.tolist(), strict=True))
