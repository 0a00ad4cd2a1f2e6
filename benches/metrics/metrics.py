"""Task metrics as one row of scores per sample, and the interval that fits each kind."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from ...core.errors import DataError
from ...core.tables import resolve
from ...core.task import Metric
from ...core.values import Interval
from ..timing import intervals
from .box_metrics import (
    box_misfit,
    matched_boxes,
    matched_boxes_at_half,
    mean_average_precision,
    mean_average_precision_at_half,
)
from .class_metrics import (
    class_misfit,
    f1_macro,
    mean_overlap,
    overlaps,
    position_misfit,
    prediction_and_label,
    right_and_counted,
    share_right,
    top1,
    top5,
)
from .embedding_metrics import embedding_misfit, recall_at
from .label_metrics import f1_micro, found_and_missed, label_misfit, mean_precision, output_and_labels, share_of_labels
from .number_metrics import absolute, number_misfit, root_mean, squared

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
Misfit = Callable[[np.ndarray, np.ndarray], str]


def with_output(metric: Metric, output: str | None) -> Metric:
    """The same metric of the output called `output`; None: of the first."""
    return dataclasses.replace(metric, output=output)


def table_name(metric: Metric) -> str | None:
    """The name in `METRICS` of a metric that computes the same, whatever output it reads; None: it is another one."""
    same = (name for name, known in METRICS.items() if dataclasses.replace(metric, name=name, output=None) == known)
    return next(same, None)


def value(metric: Metric, scores: np.ndarray) -> float:
    """The metric itself: `metric.reduce(scores)`, or the mean of the scores `(N,)`."""
    return float(metric.reduce(scores)) if metric.reduce is not None else float(scores.mean())


def interval(metric: Metric, scores: np.ndarray, confidence: float) -> Interval:
    """The metric with bounds that each hold at `confidence`.

    Wilson's score interval for proportions, Student's t for means, a seeded bootstrap over samples for statistics.

    Raises:
        DataError: fewer than two samples, or scores that are no scores (see `check_scores`).
    """
    check_scores(metric, scores)
    if metric.kind == "proportion":
        return intervals.wilson(float(scores.sum()), len(scores), confidence)
    if metric.kind == "mean":
        found = intervals.mean(scores, confidence)
    else:
        found = intervals.bootstrap(lambda indices: value(metric, scores[indices]), len(scores), confidence)
        if found.low == found.high:  # every resample agrees, e.g. all right: as far as the unseen samples allow
            half = intervals.unseen_share(len(scores), confidence) * abs(found.value)
            found = Interval(value=found.value, low=found.value - half, high=found.value + half)
    lowest, highest = metric.bounds
    return Interval(value=found.value, low=max(lowest, found.low), high=min(highest, found.high))


def of_fitting_output(metric: Metric, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> Metric:
    """The same metric of the output that fits the labels; of several the best, and of equal ones the narrowest.

    Where none does it stays as it is: `scores_of` says what does not fit.
    """
    fitting = [with_output(metric, name) for name, output in outputs.items() if _fits(metric, output, labels)]

    def worth(found: Metric) -> tuple[float, int]:
        reached = value(found, scores_of(found, outputs, labels))
        return (reached if metric.higher_is_better else -reached, -outputs[str(found.output)].size)

    if len(fitting) < 2:
        return fitting[0] if fitting else metric
    return max(fitting, key=worth)


def _fits(metric: Metric, output: np.ndarray, labels: np.ndarray) -> bool:
    try:
        check_outputs(metric, output, labels)
    except DataError:
        return False
    return True


def scores_of(metric: Metric, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Per-sample scores `(N,)` or `(N, K)` of the output that the metric reads.

    Raises:
        DataError: the output is missing or does not fit the labels, NaN, or scores of the wrong shape.
    """
    name = metric.output if metric.output is not None else next(iter(outputs))
    if name not in outputs:
        raise DataError(f"metric '{metric.name}' reads output '{name}', but the model has: {', '.join(outputs)}")
    check_outputs(metric, outputs[name], labels)
    scores = np.asarray(metric.scores(outputs[name], labels))
    if len(scores.shape) == 0 or len(scores) != len(labels):
        raise DataError(
            f"metric '{metric.name}': scores of shape {scores.shape} for {len(labels)} samples; "
            "return one row per sample, (N,) or (N, K), not the mean over them"
        )
    check_scores(metric, scores)
    return scores


def check_scores(metric: Metric, scores: np.ndarray) -> None:
    """Refuse scores that cannot be averaged or paired.

    Raises:
        DataError: fewer than two, NaN, proportions that are not 0 or 1, rows where a mean needs numbers.
    """
    if len(scores) < 2:
        raise DataError(f"metric '{metric.name}': {len(scores)} sample(s); an interval needs at least 2")
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1))[0])
        raise DataError(f"metric '{metric.name}': the score of sample {first} is not a finite number")
    if metric.reduce is None and scores.ndim != 1:
        raise DataError(
            f"metric '{metric.name}': scores of shape {scores.shape} need a reduce=, a {metric.kind} needs shape (N,)"
        )
    if metric.kind == "proportion" and not np.isin(scores, (0, 1)).all():
        raise DataError(f"metric '{metric.name}': a proportion needs scores of 0 or 1; use kind='mean' for others")


def check_outputs(metric: Metric, output: np.ndarray, labels: np.ndarray) -> None:
    """Refuse outputs that do not fit the labels before a metric makes a plausible number of them.

    Args:
        metric: length and NaN are looked at for every metric, the rest by its `misfit`.
        output: `(N, ...)`.
        labels: `(N, ...)`.

    Raises:
        DataError: a length, rank, class or value that does not fit.
    """
    if output.ndim == 0 or len(output) != len(labels):
        count = 0 if output.ndim == 0 else len(output)
        raise DataError(f"metric '{metric.name}': {count} outputs for {len(labels)} labels; they must be one to one")
    finite = np.isfinite(output.reshape(len(output), -1)).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise DataError(
            f"metric '{metric.name}': the model's output is NaN or infinite for {len(bad)} of {len(output)} samples "
            f"(first: sample {bad[0]}); check the weights and the input preprocessing"
        )
    if metric.misfit is not None and (text := metric.misfit(output, labels)):
        raise DataError(f"metric '{metric.name}': {text}")


def resolve_metric(metric: str | Metric, where: str) -> Metric:
    """A `Metric`, or the one a name in `METRICS` or ``package.module:attribute`` stands for.

    Raises:
        RecipeError: the name is unknown; `where` stands in front of the message.
    """
    return resolve(metric, METRICS, where) if isinstance(metric, str) else metric


def _named(name: str, scores: Scores, misfit: Misfit, **more: Any) -> Metric:
    return Metric(name=name, scores=scores, misfit=misfit, **{"samplewise": True, **more})


_SHARE: dict[str, Any] = {"bounds": (0.0, 1.0)}
_STATISTIC: dict[str, Any] = {"kind": "statistic", **_SHARE}
_BOXES: dict[str, Any] = {**_STATISTIC, "samplewise": False}  # as wide as the largest class of all samples
_NEAREST: dict[str, Any] = {"kind": "proportion", "samplewise": False}
_ERROR: dict[str, Any] = {"higher_is_better": False, "bounds": (0.0, math.inf)}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _named("accuracy", top1, class_misfit, kind="proportion"),
        _named("top5", top5, class_misfit, kind="proportion"),
        _named("f1-macro", prediction_and_label, class_misfit, reduce=f1_macro, **_STATISTIC),
        _named("miou", overlaps, position_misfit, reduce=mean_overlap, **_STATISTIC),
        _named("position-accuracy", right_and_counted, position_misfit, reduce=share_right, **_STATISTIC),
        _named("label-accuracy", share_of_labels, label_misfit, **_SHARE),
        _named("label-f1", found_and_missed, label_misfit, reduce=f1_micro, **_STATISTIC),
        _named("label-map", output_and_labels, label_misfit, reduce=mean_precision, **_STATISTIC),
        _named("box-map", matched_boxes, box_misfit, reduce=mean_average_precision, **_BOXES),
        _named("box-map50", matched_boxes_at_half, box_misfit, reduce=mean_average_precision_at_half, **_BOXES),
        _named("recall@1", functools.partial(recall_at, 1), embedding_misfit, **_NEAREST),
        _named("recall@5", functools.partial(recall_at, 5), embedding_misfit, **_NEAREST),
        _named("mae", absolute, number_misfit, **_ERROR),
        _named("mse", squared, number_misfit, **_ERROR),
        _named("rmse", squared, number_misfit, kind="statistic", reduce=root_mean, **_ERROR),
    )
}
