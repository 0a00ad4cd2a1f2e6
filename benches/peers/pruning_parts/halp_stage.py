"""Pruning as HALP does (Shen et al., NeurIPS 2022): importance is bought with milliseconds out of a table of layers.

A layer's time at each output width is looked up, its input as wide as it is now; what a group costs is the sum over the
layers that write it. A knapsack takes the channels of most importance that fit. Importance, the Taylor estimate as it
is and summed over those layers, is taken anew in each of a few steps, the budget falls from step to step.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from edgesmith.compressor import replay
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning.coupling import CoupledChannels
from edgesmith.compressor.pruning.importance import Importance, Rows
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import UnreachableError

from .halp_table import Table

_STEPS = 5
_BINS = 2000  # that a budget is counted in
Choice = tuple[float, float]  # importance kept, milliseconds


def written(rows: Rows) -> torch.Tensor | None:
    """The Taylor estimate of the filters that write a channel."""
    return rows.taylor if rows.kind == "out" else None


WRITTEN = Importance(rule=written, needs="gradients", comparable=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halp(Prune):
    """`latency_ratio` is of the table's time: layers one by one, as the paper looks them up, in INT8."""

    name: ClassVar[str] = "halp"
    importance: str = f"{__name__}:WRITTEN"

    def _scores(self, module: nn.Module, groups: list[CoupledChannels], context: Context) -> dict[str, torch.Tensor]:
        """Summed over the layers that write a group, not scaled: what is bought is the loss's change."""
        writers = {group.root: sum(member.kind == "out" for member in group.members) for group in groups}
        return {root: writers[root] * mean for root, mean in super()._scores(module, groups, context).items()}

    def _to_latency(self, value: Candidate, context: Context) -> Candidate:
        assert self.latency_ratio is not None
        current, whole = value, None
        batch = context.deployment.measure.batch_sizes[0]
        for step in range(1, _STEPS + 1):
            module = current.module()
            groups, _ = self._groups(module, current, context, report=step == 1)
            scores = self._scores(module, groups, context)
            table = Table(module, current, batch, context.machine.threads)
            whole = whole or table.whole()
            goal = whole * self.latency_ratio ** (step / _STEPS)
            kept = _packed(groups, scores, table, self._multiple(context), goal)
            if kept is None:
                raise UnreachableError(
                    f"{context.where}: the knapsack's smallest network takes more than {goal:.3g} ms"
                )
            edits = [
                group.edit(group.least(scores[group.root], group.channels - kept[group.root]))
                for group in groups
                if group.root in kept and kept[group.root] < group.channels
            ]
            replay.apply(module, current.example, edits)
            current = Candidate.of(module, current, (*current.edits, *edits))
        return current


def _packed(
    groups: Sequence[CoupledChannels], scores: Mapping[str, torch.Tensor], table: Table, multiple: int, goal: float
) -> dict[str, int] | None:
    """Widths of the most importance whose layers take at most `goal` milliseconds; None: none is that fast."""
    writers = {group.root: [name for name in group.layers if name in table.names()] for group in groups}
    chosen = [group for group in groups if group.root in scores and writers[group.root]]
    free = {name for group in chosen for name in writers[group.root]}
    fixed = sum(table.time(name, table.width(name)) for name in table.names() if name not in free)
    options = []
    for group in chosen:
        ranked, each = scores[group.root].sort(descending=True).values.cumsum(0), group.multiple(multiple)
        widths = sorted({group.channels, *range(each, group.channels, each)})
        options.append(
            {
                width: (
                    float(ranked[width - 1]),
                    sum(table.time(name, table.width(name) * width // group.channels) for name in writers[group.root]),
                )
                for width in widths
            }
        )
    found = knapsack(options, goal - fixed)
    return None if found is None else {group.root: width for group, width in zip(chosen, found, strict=True)}


def knapsack(options: Sequence[Mapping[int, Choice]], budget: float) -> list[int] | None:
    """One width of each group: the most value in all whose times fit into the budget, counted in bins, upwards."""
    if budget <= 0:
        return None
    best, picks = np.zeros(_BINS + 1), []
    for each in options:
        after, pick = np.full(_BINS + 1, -np.inf), np.zeros(_BINS + 1, int)
        for width, (value, milliseconds) in each.items():
            bins = int(np.ceil(milliseconds / budget * _BINS))
            if bins > _BINS:
                continue
            with_it = np.full(_BINS + 1, -np.inf)
            with_it[bins:] = best[: _BINS + 1 - bins] + value
            pick[with_it > after] = width
            after = np.maximum(after, with_it)
        best = after
        picks.append(pick)
    if not np.isfinite(best[_BINS]):
        return None
    left, found = _BINS, []
    for each, pick in zip(reversed(options), reversed(picks), strict=True):
        width = int(pick[left])
        found.append(width)
        left -= int(np.ceil(each[width][1] / budget * _BINS))
    return found[::-1]
