"""What classes, slices and corrupted copies of the test data lost, which the mean hides: a paired interval each."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ...core.task import Metric
from ...core.values import Interval
from . import accuracy, metrics

Kind = Literal["class", "slice", "corruption"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """The main metric of one group of test samples. None: fewer than two samples, of which nothing can be said.

    `drop` is original minus final in the metric's unit, positive is worse. `high` holds at the limits' confidence,
    `low` at one that is corrected for the number of groups, see `losses`.
    """

    kind: Kind
    name: str
    samples: int
    original: float | None
    final: float | None
    drop: Interval | None


def class_masks(labels: np.ndarray, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Class -> which samples have it, bool `(N,)`; empty where a sample has not one integer label.

    Args:
        labels: `(N, ...)`.
        names: in the order of the labels; empty: the labels are the names. Of two classes with one name, as ImageNet's
            cranes, each has its label too: 'crane (134)'.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return {}
    times = collections.Counter(names)

    def name(label: int) -> str:
        if label >= len(names):
            return str(label)
        return names[label] if times[names[label]] == 1 else f"{names[label]} ({label})"

    return {name(label): labels == label for label in np.unique(labels).tolist()}


def losses(
    metric: Metric,
    original: np.ndarray,
    final: np.ndarray,
    masks: Mapping[str, np.ndarray],
    kind: Kind,
    confidence: float,
) -> tuple[GroupLoss, ...]:
    """Every group's loss, in the order of `masks`; the intervals are those of `pair_losses`.

    Args:
        metric: the main one.
        original: scores `(N,)` or `(N, K)`.
        final: of the same samples.
        masks: group -> bool `(N,)`.
        kind: of the groups.
        confidence: of each upper bound.
    """
    return pair_losses(metric, {name: (original[m], final[m]) for name, m in masks.items()}, kind, confidence)


def pair_losses(
    metric: Metric, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], kind: Kind, confidence: float
) -> tuple[GroupLoss, ...]:
    """Every group's loss, in the order of `pairs`.

    That none loses more than a limit is proven when each upper bound keeps it: to claim it of all, each claim alone is
    tested at the full level (the intersection-union test, Berger, Technometrics 24(4), 1982). That some group has lost
    more is claimed as soon as one lower bound says so, and with many groups one does by chance: lower bounds are at
    1 - (1 - confidence) / groups (Bonferroni). Holm's steps would name further groups after the first, but the verdict
    hangs on the first, where both are the same.

    Args:
        metric: the main one.
        pairs: group -> scores of original and final, `(N,)` or `(N, K)`, of the same samples.
        kind: of the groups.
        confidence: of each upper bound.
    """
    counted = sum(len(before) >= 2 for before, _ in pairs.values())
    corrected = 1 - (1 - confidence) / max(1, counted)
    found = []
    for name, (before, after) in pairs.items():
        drop = None
        if len(before) >= 2:
            plain = accuracy.paired_drop(metric, before, after, confidence)
            wide = accuracy.paired_drop(metric, before, after, corrected)
            drop = Interval(value=plain.value, low=wide.low, high=plain.high)
        found.append(
            GroupLoss(
                kind=kind,
                name=name,
                samples=len(before),
                original=metrics.value(metric, before) if drop else None,
                final=metrics.value(metric, after) if drop else None,
                drop=drop,
            )
        )
    return tuple(found)
