"""Task metrics as one row of scores per sample, and the interval that fits each kind."""

import math
from collections.abc import Mapping

import numpy as np

from ..core.errors import DataError
from ..core.tables import resolve
from ..core.task import Metric
from ..core.values import Interval
from . import intervals


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
    lowest, highest = _RANGES.get(metric.name, (-math.inf, math.inf))
    return Interval(value=found.value, low=max(lowest, found.low), high=min(highest, found.high))


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
        metric: an entry of `METRICS` is checked for classes or shapes too, a metric of the task for length and NaN.
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
    if METRICS.get(metric.name) is not metric:
        return
    if metric.name in _OF_CLASSES:
        _check_classes(metric.name, output, labels)
    elif _aligned(output).shape != _aligned(labels).shape:
        raise DataError(
            f"metric '{metric.name}': output of shape {output.shape} against labels of shape {labels.shape}; "
            "they must be the same"
        )


def resolve_metric(metric: str | Metric, where: str) -> Metric:
    """A `Metric`, or the one a name in `METRICS` or ``package.module:attribute`` stands for.

    Raises:
        RecipeError: the name is unknown; `where` stands in front of the message.
    """
    return resolve(metric, METRICS, where) if isinstance(metric, str) else metric


def _check_classes(name: str, output: np.ndarray, labels: np.ndarray) -> None:
    dense = name == "miou"
    wanted = "(N, classes, ...)" if dense else "(N, classes)"
    if output.ndim < 3 if dense else output.ndim != 2:
        raise DataError(
            f"metric '{name}': needs an output of shape {wanted}, got {output.shape}; "
            "name the right output with Metric(output=...), or give the task a metric of its own"
        )
    shape = (len(output), *output.shape[2:])
    if labels.shape != shape or not np.issubdtype(labels.dtype, np.integer):
        expected = f"{shape}, one class per position" if dense else "(N,)"
        raise DataError(
            f"metric '{name}': needs integer labels of shape {expected}, got {labels.dtype} of shape {labels.shape}"
        )
    lowest, highest, classes = int(labels.min()), int(labels.max()), output.shape[1]
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"metric '{name}': the model gives {classes} outputs (classes 0 to {classes - 1}), but there is a label "
            f"{wrong}; the labels or the model's last layer belong to another task"
        )


def _aligned(array: np.ndarray) -> np.ndarray:
    """`(N, 1)` as `(N,)`: else a subtraction against `(N,)` would broadcast to `(N, N)`."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _errors(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    difference: np.ndarray = _aligned(output).astype(np.float64) - _aligned(labels)
    return difference.reshape(len(difference), -1)


def _top1(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    hits: np.ndarray = np.equal(output.argmax(axis=1), labels).astype(np.float64)
    return hits


def _top5(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    # Ties count against the label: a constant output must not earn anything.
    own = output[np.arange(len(output)), labels]
    not_lower = (output >= own[:, None]).sum(axis=1)
    hits: np.ndarray = (not_lower <= 5).astype(np.float64)
    return hits


def _absolute(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    per_sample: np.ndarray = np.abs(_errors(output, labels)).mean(axis=1)
    return per_sample


def _squared(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    per_sample: np.ndarray = (_errors(output, labels) ** 2).mean(axis=1)
    return per_sample


def _root_mean(scores: np.ndarray) -> float:
    return math.sqrt(scores.mean())


def _prediction_and_label(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([output.argmax(axis=1), labels], axis=1)


def _f1_macro(rows: np.ndarray) -> float:
    """Unweighted mean of the F1 of every class that occurs, predicted or true; rows are (predicted, label)."""
    classes = int(rows.max()) + 1
    predicted, true = (np.bincount(rows[:, column], minlength=classes) for column in (0, 1))
    hits = np.bincount(rows[rows[:, 0] == rows[:, 1], 0], minlength=classes)
    occurs = (predicted + true) > 0
    return float((2 * hits[occurs] / (predicted + true)[occurs]).mean())


def _overlaps(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per sample and class: pixels both predicted and true, pixels either; `(N, 2 * classes)`."""
    count, classes = output.shape[:2]
    predicted, true = output.argmax(axis=1).reshape(count, -1), labels.reshape(count, -1)
    both = np.stack([((predicted == k) & (true == k)).sum(axis=1) for k in range(classes)], axis=1)
    either = np.stack([((predicted == k) | (true == k)).sum(axis=1) for k in range(classes)], axis=1)
    return np.concatenate([both, either], axis=1)


def _mean_overlap(rows: np.ndarray) -> float:
    """Mean over the classes that occur of intersection over union, both summed over samples (PASCAL VOC)."""
    both, either = np.split(rows.sum(axis=0), 2)
    occurs = either > 0
    return float((both[occurs] / either[occurs]).mean())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(name="accuracy", scores=_top1, kind="proportion"),
    "top5": Metric(name="top5", scores=_top5, kind="proportion"),
    "f1-macro": Metric(name="f1-macro", scores=_prediction_and_label, kind="statistic", reduce=_f1_macro),
    "miou": Metric(name="miou", scores=_overlaps, kind="statistic", reduce=_mean_overlap),
    "mae": Metric(name="mae", scores=_absolute, higher_is_better=False),
    "mse": Metric(name="mse", scores=_squared, higher_is_better=False),
    "rmse": Metric(name="rmse", scores=_squared, higher_is_better=False, kind="statistic", reduce=_root_mean),
}

_OF_CLASSES = frozenset({"accuracy", "top5", "f1-macro", "miou"})
_RANGES = {
    "f1-macro": (0.0, 1.0),
    "miou": (0.0, 1.0),
    "mae": (0.0, math.inf),
    "mse": (0.0, math.inf),
    "rmse": (0.0, math.inf),
}
