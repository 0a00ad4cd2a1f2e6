"""Pruning to a ratio of MACs, parameters or channels: the least intensity that meets it."""

import copy
import dataclasses
import fnmatch
from collections.abc import Mapping

import torch

from ...core.errors import RecipeError, UnreachableError
from ...core.tables import resolve
from ..candidate import Candidate
from ..edit import ChannelEdit
from ..structure import Size, measure
from .allocation import ALLOCATIONS, Facts, aligned
from .coupling import CoupledChannels, kind_of, remove


class Search:
    """Finds the least intensity whose pruned network is no larger than the goal."""

    def __init__(
        self,
        allocation: str,
        intensity: Mapping[str, float],
        candidate: Candidate,
        groups: list[CoupledChannels],
        scores: Mapping[str, torch.Tensor],
        multiple: int,
        where: str,
    ) -> None:
        self._allocate = resolve(allocation, ALLOCATIONS, f"{where}.allocation")
        self._base = candidate.module()
        weights = {
            group.root: weight for pattern, weight in intensity.items() for group in groups if matches(group, pattern)
        }
        self._facts = Facts(weights=weights, kinds={group.root: kind_of(self._base, group) for group in groups})
        self._candidate, self._groups, self._scores = candidate, groups, scores
        self._multiple, self._where = multiple, where
        if not any(weights.get(root, 1.0) for root in scores):
            raise RecipeError(f"{where}.intensity: every layer that may be pruned has weight 0; give one of them more")
        self._seen: dict[tuple[ChannelEdit, ...], Size] = {}

    def check(self, name: str, goal: float, full: Size) -> None:
        """Refuse a goal that no intensity reaches.

        Raises:
            UnreachableError: says what is the smallest there is.
        """
        smallest = getattr(self._size(self._edits(1.0)), name)
        if smallest > goal:
            original = getattr(full, name)
            weighted = {self._facts.weights.get(root, 1.0) for root in self._scores}
            emptied = "every layer" if len(weighted) == 1 else "the layers of the largest intensity"
            raise UnreachableError(
                f"{self._where}.{name}_ratio: {goal / original:.3g} cannot be reached without emptying a layer; "
                f"the smallest here is {smallest / original:.3g} ({emptied} at {self._multiple} channels); "
                "ask for more, lower round_to, or allow more layers"
            )

    def meet(self, name: str, goal: float, full: Size) -> tuple[ChannelEdit, ...]:
        """The edits that bring `name` ("macs", "params", "channel") to `goal` or just below."""
        self.check(name, goal, full)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if getattr(self._size(self._edits(middle)), name) <= goal else (middle, high)
        return self._edits(high)

    def _edits(self, intensity: float) -> tuple[ChannelEdit, ...]:
        edits = []
        groups = {group.root: group for group in self._groups}
        for root, kept in self._allocate(self._scores, intensity, self._facts).items():
            values, group = self._scores[root], groups[root]
            gone = len(values) - aligned(kept, len(values), group.multiple(self._multiple))
            if gone:
                edits.append(group.edit(group.least(values, gone)))
        return tuple(edits)

    def _size(self, edits: tuple[ChannelEdit, ...]) -> Size:
        if edits not in self._seen:
            module = copy.deepcopy(self._base)
            remove(module, self._candidate.example, edits)
            removed = {edit.layer: len(edit.remove) for edit in edits}
            channels = sum(group.rows - removed.get(group.root, 0) for group in self._groups)
            self._seen[edits] = dataclasses.replace(measure(module, self._candidate.example, ()), channel=channels)
        return self._seen[edits]


def matches(group: CoupledChannels, pattern: str) -> bool:
    """Whether a glob names one of the layers that write a group's channels."""
    return any(fnmatch.fnmatchcase(layer, pattern) for layer in group.layers)
