"""The gap between the groups of the test data that a model serves best and worst, and how compression changed it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from ...core.task import Metric
from ...core.values import Interval
from ..metrics import metrics
from ..timing import intervals

Kind = Literal["class", "slice"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disparity:
    """Largest minus smallest main metric over the groups of one kind, of both models.

    `growth` is the final model's gap minus the original's, positive is worse; its interval is a paired bootstrap: both
    models on the same resamples, which keep the size of every group. A percentile interval (Efron 1979) knows nothing
    of samples that were not seen, so that it is at least as wide as the share of the smallest group that may behave
    otherwise unseen (`intervals.unseen_share`), times the range of the scores.
    """

    kind: Kind
    groups: int
    samples: int  # of the smallest group
    original: float
    final: float
    growth: Interval
    best: str  # group with the best and the worst metric under the final model
    worst: str


def disparities(
    metric: Metric,
    original: np.ndarray,
    final: np.ndarray,
    masks: Mapping[Kind, Mapping[str, np.ndarray]],
    confidence: float,
) -> tuple[Disparity, ...]:
    """The gap of every kind of group that has two of at least two samples each.

    Args:
        metric: the main one.
        original: scores `(N,)` or `(N, K)`.
        final: of the same samples.
        masks: kind -> group -> bool `(N,)`; groups may overlap.
        confidence: of each upper bound; lower bounds share it among the kinds, as in `groups.pair_losses`.
    """
    kept = {kind: {name: mask for name, mask in each.items() if mask.sum() >= 2} for kind, each in masks.items()}
    kept = {kind: each for kind, each in kept.items() if len(each) >= 2}
    corrected = 1 - (1 - confidence) / max(1, len(kept))
    return tuple(_gap(metric, original, final, each, kind, confidence, corrected) for kind, each in kept.items())


def _gap(
    metric: Metric,
    original: np.ndarray,
    final: np.ndarray,
    masks: Mapping[str, np.ndarray],
    kind: Kind,
    confidence: float,
    corrected: float,
) -> Disparity:
    names, every = list(masks), np.stack(list(masks.values()))
    before, after = (_of_groups(metric, scores, every) for scores in (original, final))
    everyone, smallest = np.arange(len(original)), int(every.sum(1).min())
    last = after(everyone)
    ranked = np.argsort(last if metric.higher_is_better else -last, kind="stable")
    _, strata = np.unique(every.T, axis=0, return_inverse=True)
    strata = strata.reshape(-1)
    half = intervals.unseen_share(smallest, confidence) * _score_range(metric, original, final)

    def growth(indices: np.ndarray) -> float:
        return float(np.ptp(after(indices)) - np.ptp(before(indices)))

    plain = intervals.bootstrap(growth, len(original), confidence, strata)
    wide = plain if corrected == confidence else intervals.bootstrap(growth, len(original), corrected, strata)
    value = plain.value
    return Disparity(
        kind=kind,
        groups=len(names),
        samples=smallest,
        original=float(np.ptp(before(everyone))),
        final=float(np.ptp(last)),
        growth=Interval(value=value, low=min(wide.low, value - half), high=max(plain.high, value + half)),
        best=names[ranked[-1]],
        worst=names[ranked[0]],
    )


def _of_groups(metric: Metric, scores: np.ndarray, masks: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Indices of a resample `(N,)` that keeps the groups' sizes -> the metric of every group `(G,)`."""
    if metric.reduce is None:
        shares = masks / masks.sum(1, keepdims=True) * scores  # what a sample adds to the mean of each group
        return lambda indices: shares @ np.bincount(indices, minlength=len(scores))

    def values(indices: np.ndarray) -> np.ndarray:
        return np.array([metrics.value(metric, scores[indices[mask[indices]]]) for mask in masks])

    return values


def _score_range(metric: Metric, original: np.ndarray, final: np.ndarray) -> float:
    """How far two samples' scores may lie apart: as the metric's bounds say, or as it was seen."""
    lowest, highest = metric.bounds
    if metric.kind == "proportion":
        return 1.0
    if np.isfinite(lowest) and np.isfinite(highest):
        return highest - lowest
    values = [metrics.value(metric, scores) for scores in (original, final)]
    return float(np.ptp(np.concatenate([original, final]))) if metric.reduce is None else max(map(abs, values))
