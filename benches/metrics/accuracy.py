"""Original and final on the same samples: predictions, the paired loss in a metric, and how many samples would do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...core.errors import DataError
from ...core.task import Metric, Split
from ...core.values import Arrays, Interval, Session
from ..timing import intervals
from . import metrics

_MOST_SAMPLES = 10**9  # beyond this the answer is "more than anybody has"


def predict(session: Session, split: Split, batch_size: int) -> dict[str, np.ndarray]:
    """Outputs for every sample of a split, in its order: output name -> `(N, ...)`.

    A model with a fixed batch is run at that batch, the last one filled up with copies of its last sample.

    Raises:
        DataError: the split is empty, or an output has no batch axis.
    """
    if len(split) == 0:
        raise DataError("predict: the split has no samples")
    size = _fixed_batch(session) or batch_size
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(split), size):
        indices = np.arange(start, min(start + size, len(split)))
        feed, _ = split.batch(indices)
        padding = size - len(indices) if _fixed_batch(session) else 0
        for name, array in session.run(_padded(feed, padding)).items():
            if array.ndim == 0 or len(array) != len(indices) + padding:
                raise DataError(
                    f"output '{name}' has shape {array.shape} for a batch of {len(indices) + padding}; "
                    "its first axis must be the batch"
                )
            parts.setdefault(name, []).append(array[: len(indices)])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def labels_of(split: Split, batch_size: int = 1024) -> np.ndarray:
    """Labels of every sample of a split, `(N, ...)`, in its order.

    Raises:
        DataError: the split has no samples or no labels.
    """
    parts = []
    for start in range(0, len(split), batch_size):
        _, labels = split.batch(np.arange(start, min(start + batch_size, len(split))))
        if labels is None:
            raise DataError("the split has no labels, so that no metric can be measured on it")
        parts.append(labels)
    if not parts:
        raise DataError("the split has no samples")
    return np.concatenate(parts)


def paired_drop(metric: Metric, scores_original: np.ndarray, scores_final: np.ndarray, confidence: float) -> Interval:
    """What the final model lost in the metric against the original, in the metric's unit; positive is worse.

    Tango's score interval for proportions, Student's t on the differences for means, a bootstrap over
    samples for statistics. The last two know nothing of losses that were not seen: they are never narrower than
    `_unseen`.

    Args:
        metric: decides the kind of interval and the sign.
        scores_original: `(N,)` or `(N, K)`, from `metrics.scores_of`.
        scores_final: the same samples in the same order.
        confidence: of each bound alone.

    Raises:
        DataError: different numbers of samples, fewer than two, or NaN.
    """
    found, half, count = seen_drop(metric, scores_original, scores_final, confidence), 0.0, len(scores_original)
    if metric.kind == "proportion":
        return found
    same = (scores_original == scores_final).reshape(count, -1).all(axis=1)
    if same.any():
        half = _unseen(metric, scores_original, int(same.sum()), confidence)
    low, high = min(found.low, found.value - half), max(found.high, found.value + half)
    return Interval(value=found.value, low=low, high=high)


def seen_drop(metric: Metric, original: np.ndarray, final: np.ndarray, confidence: float) -> Interval:
    """The same by the differences that were seen alone: whether there is one, not how large an unseen one may be.

    Raises:
        DataError: see `paired_drop`.
    """
    _check_pair(metric, original, final)
    sign = 1.0 if metric.higher_is_better else -1.0
    if metric.kind == "proportion":
        first, second = _disagreements(metric, original, final)
        return intervals.tango(first, second, len(original), confidence)
    if np.array_equal(original, final):
        return Interval(value=0.0, low=0.0, high=0.0)
    if metric.kind == "mean":
        return intervals.mean(sign * (original - final), confidence)

    def drop(indices: np.ndarray) -> float:
        return sign * (metrics.value(metric, original[indices]) - metrics.value(metric, final[indices]))

    return intervals.bootstrap(drop, len(original), confidence)


def negative_flips(metric: Metric, original: np.ndarray, final: np.ndarray, confidence: float) -> Interval:
    """Share of samples that the original has right and the final model has not (Yan et al., CVPR 2021).

    Raises:
        DataError: the metric is no share of right answers; or see `paired_drop`.
    """
    if metric.kind != "proportion":
        raise DataError(
            f"metric '{metric.name}': by it no sample is right or wrong, so that none can turn from one to the other"
        )
    _check_pair(metric, original, final)
    lost, _ = _disagreements(metric, original, final)
    return intervals.share(lost, len(original), confidence)


def samples_needed(
    metric: Metric, scores_original: np.ndarray, scores_final: np.ndarray, limit: float, confidence: float
) -> int | None:
    """Fewest samples that would settle `drop <= limit` either way, were they to disagree at the rate seen here.

    Returns:
        A count, or None where the drop measured is the limit itself, so that no number of samples would.
    """
    drop = paired_drop(metric, scores_original, scores_final, confidence)
    if metric.kind != "proportion":
        return samples_to_settle(drop, limit, len(scores_original))
    first, second = _disagreements(metric, scores_original, scores_final)
    shares = first / len(scores_original), second / len(scores_original)

    def settled(count: int) -> bool:
        bounds = intervals.tango(shares[0] * count, shares[1] * count, count, confidence)
        return bounds.high <= limit or bounds.low > limit

    return _smallest(settled)


def samples_to_settle(measured: Interval, limit: float, count: int) -> int | None:
    """Samples that would bring the deciding bound of `measured` onto `limit`; widths shrink with the square root.

    Returns:
        A count, or None where no number of samples would do.
    """
    distance = abs(limit - measured.value)
    half = measured.high - measured.value if measured.value <= limit else measured.value - measured.low
    if distance == 0:
        return None
    needed = count * (half / distance) ** 2
    return max(2, math.ceil(needed - 1e-6)) if needed <= _MOST_SAMPLES else None


def _smallest(settled: Callable[[int], bool]) -> int | None:
    """Smallest count from which on `settled` holds: doubling, then halving."""
    high = 2
    while not settled(high):
        high *= 2
        if high > _MOST_SAMPLES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def _unseen(metric: Metric, scores: np.ndarray, same: int, confidence: float) -> float:
    """How much could be lost by samples like those that lost nothing, in the metric's unit.

    Of samples whose score is the same for both models, a share of `unseen_share` may yet behave otherwise, and each by
    the range of a sample's influence. Scores that always differ a little leave no such share; of those that hardly
    ever do, such as errors per text or overlaps, a few lost ones decide, and none of them need be among those seen.

    Args:
        scores: the original's, `(N,)` or `(N, K)`.
        same: number of samples with the same score for both, at least one.
    """
    count = len(scores)
    if metric.reduce is None:  # the influences on a mean are the scores themselves
        largest = float(np.ptp(scores))
    else:
        largest = intervals.influence_range(lambda indices: metrics.value(metric, scores[indices]), count)
    # Where every sample has the same score the range is zero; the metric's own size is then the only scale there is.
    scale = largest or abs(metrics.value(metric, scores))
    return same / count * intervals.unseen_share(same, confidence) * scale


def _disagreements(metric: Metric, original: np.ndarray, final: np.ndarray) -> tuple[int, int]:
    """Samples that count as lost and as won; for a lower-is-better proportion a score of 1 is the bad one."""
    better, worse = int((original > final).sum()), int((original < final).sum())
    return (better, worse) if metric.higher_is_better else (worse, better)


def _check_pair(metric: Metric, original: np.ndarray, final: np.ndarray) -> None:
    metrics.check_scores(metric, original)
    metrics.check_scores(metric, final)
    if original.shape != final.shape:
        raise DataError(
            f"metric '{metric.name}': scores of shape {original.shape} (original) and {final.shape} (final); "
            "a paired comparison needs the same samples in the same order"
        )


def _fixed_batch(session: Session) -> int | None:
    shape = session.inputs[0].shape if session.inputs else ()
    return shape[0] if shape and isinstance(shape[0], int) else None


def _padded(feed: Arrays, padding: int) -> Arrays:
    if not padding:
        return feed
    return {name: np.concatenate([array, np.repeat(array[-1:], padding, axis=0)]) for name, array in feed.items()}
