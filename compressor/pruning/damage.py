"""What it costs to take channels or a block out: the loss without them, before anything is trained again."""

import copy
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ...core.errors import TaskError
from .. import replay
from ..candidate import Candidate
from ..data import batches, has_variance
from ..edit import BlockEdit
from ..learning.losses import task_loss
from ..stage import Context
from . import coupling
from .channel_statistics import Batch
from .coupling import CoupledChannels
from .latency_allocation import Damage

_T = TypeVar("_T")
_WIDTHS = (4, 3, 2)  # of a group that are measured; between them the damage is interpolated
_ENOUGH = 16  # samples; before there are fewer, fewer widths are measured
_FEWEST = 8  # however large the network
_SECONDS = 90.0  # that measuring may take in all: of one core, or of a GPU


def measure_damage(
    candidate: Candidate,
    groups: Sequence[CoupledChannels],
    widths: Mapping[str, Sequence[int]],
    blocks: Sequence[BlockEdit],
    scores: Mapping[str, torch.Tensor],
    context: Context,
    samples: int,
    batch_size: int,
    seconds: float,
) -> Damage:
    """Run the network on training samples without the least important channels of one group, or without one block.

    Batch norms use the statistics of the batch, as if they had been estimated anew. A damage is never below zero, and
    never less at a smaller width.

    Args:
        groups: those in `widths`.
        widths: root -> widths to choose from, falling, the whole one first.
        blocks: that may leave.
        scores: root -> (channels,), higher is more important.
        samples: the most; see `effort`.
        seconds: that a sample takes, see `seconds_of_sample`.

    Raises:
        TaskError: no batch has two samples with a label.
    """
    module = candidate.module()
    graph = coupling.graph_of(module, candidate.example)
    most, (per_group, samples) = samples, effort([each[1:] for each in widths.values()], len(blocks), seconds, samples)
    context.notes.append(f"damage: on {samples} of {most} samples, at up to {per_group} widths of a group")
    chosen = {root: spread(each[1:], per_group) for root, each in widths.items()}
    data = _batches(context, samples, batch_size)
    whole = _loss(copy.deepcopy(module), data, context)
    found: dict[str, dict[int, float]] = {}
    without: dict[str, float] = {}
    with context.progress.bar(f"damage {context.where}", sum(map(len, chosen.values())) + len(blocks)) as advance:
        done = itertools.count(1)
        for group in groups:
            measured = {group.channels: 0.0}
            for width in chosen[group.root]:
                edit = group.edit(group.least(scores[group.root], group.channels - width))
                trial = coupling.without(module, candidate.example, edit, graph)
                measured[width] = _loss(trial, data, context) - whole
                advance(next(done), group.root)
            found[group.root] = _interpolated(measured, widths[group.root])
        for block in blocks:
            trial = copy.deepcopy(module)
            replay.apply(trial, candidate.example, [block])
            without[block.block] = max(0.0, _loss(trial, data, context) - whole)
            advance(next(done), block.block)
    return Damage(groups=found, blocks=without)


def seconds_of_sample(module: nn.Module, context: Context, batch_size: int) -> float:
    """What a training sample takes on this machine; time that a core spends on others is not counted."""
    data = _batches(context, _ENOUGH, batch_size)
    clock = time.perf_counter if context.machine.device == "cuda" else time.process_time
    taken = []
    for _ in range(2):  # the first is slower
        start = clock()
        _loss(module, data, context)
        taken.append(clock() - start)
    return min(taken) / sum(len(next(iter(inputs.values()))) for inputs, _ in data)


def effort(widths: Sequence[Sequence[int]], blocks: int, seconds: float, samples: int) -> tuple[int, int]:
    """How many widths of each group to measure, and on how many samples: of a large network fewer of both.

    Args:
        widths: of each group, without the whole one.
        seconds: that a sample takes.
        samples: the most.

    Returns:
        Samples are never fewer than `_FEWEST`, which a very large network takes more time for.
    """
    affordable = {}
    for per_group in _WIDTHS:
        trials = 1 + sum(min(per_group, len(each)) for each in widths) + blocks
        affordable[per_group] = int(_SECONDS / max(trials * seconds, 1e-9))
    per_group = next((each for each in _WIDTHS if affordable[each] >= min(samples, _ENOUGH)), _WIDTHS[-1])
    return per_group, min(samples, max(_FEWEST, affordable[per_group]))


def _batches(context: Context, samples: int, batch_size: int) -> list[Batch]:
    """Labelled training samples, without batches of a single one; where few have labels, as many are looked through."""
    data, count = [], 0
    every = len(context.task.split("train", context.where))
    for batch in batches(context, "train", every, min(batch_size, samples), labelled=True):
        if has_variance(batch[0]):
            data.append(batch)
            count += len(next(iter(batch[0].values())))
        if count >= samples:
            break
    if not data:
        raise TaskError(
            f"task '{context.task.name}': {context.where}: no batch of the 'train' split holds two samples with a "
            "label, which batch norms need; raise batch_size, or label more"
        )
    return data


def _loss(module: nn.Module, data: Iterable[Batch], context: Context) -> float:
    loss = task_loss(context.task)
    module.to(context.machine.device).eval()
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


def spread(values: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of them, the first and the last among these, where there are two."""
    places = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))
    return [values[place] for place in places.tolist()]


def _interpolated(measured: Mapping[int, float], widths: Sequence[int]) -> dict[int, float]:
    known = sorted(measured, reverse=True)
    rising = np.maximum.accumulate([max(0.0, measured[width]) for width in known])
    values = np.interp([-width for width in widths], [-width for width in known], rising)
    return dict(zip(widths, values.tolist(), strict=True))
