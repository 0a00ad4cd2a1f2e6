"""What can be fused: members that say the same things of the same inputs, and data that they were not trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import scipy

from ...core.errors import DataError, RecipeError
from ...core.task import Task
from ...exporters.from_sklearn import check_convertible
from ..data import sample_digests
from ..evaluation import task_metrics
from .fusing import LEAST
from .member_outputs import LABELS, fusible

_SHARED = 0.01  # share of validation samples that may be in `train` too, as rare twins are in real data
_VARIES = 1e-6  # of a member's largest output: what varies by less is rounding
_REORDERED = 0.2  # share of the samples that another order of a member's classes would have to put right besides
_OF_MOVED = 0.5  # or of those whose class would change its column
_ABOVE_ZERO = ("label-accuracy", "label-f1")  # metrics of log-odds
_CHANCE = 1e-4  # that it seems so of a member that only mixes them up
_PER_CLASS = 5  # samples, without which the order of classes cannot be told
_MOST_CLASSES = 2000  # whose order is found in reasonable time


def member_rows(name: str, output: np.ndarray, kind: str, where: str) -> np.ndarray:
    """A member's output as `(N, C)` in float64: probabilities of classes or labels, or numbers."""
    of_labels = kind in ("numbers", LABELS)
    if output.ndim > 2 or (output.ndim == 1 and not of_labels):
        raise DataError(f"{where}: member '{name}' gives {output.shape}; what is fused is (N, classes) or (N, numbers)")
    rows = output.reshape(len(output), -1).astype(np.float64)
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise DataError(
            f"{where}: member '{name}' gives NaN or infinity for {(~finite).sum()} of {len(rows)} validation samples; "
            "check its weights and how its input is prepared, or leave it out"
        )
    if len(rows) > 1 and bool((np.ptp(rows, axis=0) <= _VARIES * np.abs(rows).max(axis=0)).all()):
        raise DataError(
            f"{where}: member '{name}' gives the same output for all {len(rows)} validation samples; it has learnt "
            "nothing, or reads another kind of input: leave it out"
        )
    if of_labels:
        return fusible(rows, kind)
    if rows.shape[1] == 1:
        raise DataError(
            f"{where}.gives: '{name}' gives one number for each sample, and one class alone has no {kind}; if it says "
            f"yes above 0, that is '{LABELS}' with labels (N, 1) of 0 or 1, else 'numbers'"
        )
    distributions = bool((rows >= -1e-6).all() and (np.abs(rows.sum(1) - 1) < 1e-3).all())
    if kind == "probabilities" and not distributions:
        raise DataError(
            f"{where}.gives: '{name}' is said to give probabilities, but its rows are none: they go from "
            f"{rows.min():.3g} to {rows.max():.3g} and add up to {rows.sum(1).min():.3g} to {rows.sum(1).max():.3g}; "
            "say 'logits' if a softmax makes probabilities of them"
        )
    if kind == "logits" and distributions:
        raise DataError(
            f"{where}.gives: '{name}' is said to give logits, but every row is a distribution already; say "
            "'probabilities'"
        )
    return fusible(rows, kind)


def check_same_width(widths: Mapping[str, int], task: Task, kinds: Mapping[str, str], where: str) -> None:
    what = {"numbers": "numbers", LABELS: "labels"}.get(next(iter(kinds.values())), "classes")
    if len(set(widths.values())) != 1:
        raise DataError(f"{where}: members differ in their number of {what}: {listed(widths)}")
    if task.classes and next(iter(widths.values())) != len(task.classes):
        raise DataError(f"{where}: the task names {len(task.classes)} classes, members give {listed(widths)}")


def check_apart(task: Task, where: str) -> None:
    """What is learnt on validation data is learnt from answers that members have not been taught.

    Without a `train` split nothing can be said, which is for the stage to say.
    """
    if task.train is None:
        return
    train, validation = task.train, task.split("validation", where)
    taught = set(sample_digests(train, np.arange(len(train))))
    found = sample_digests(validation, np.arange(len(validation)))
    shared = [index for index, each in enumerate(found) if each in taught]
    if len(shared) > _SHARED * len(found):
        raise DataError(
            f"{where}: {len(shared)} of {len(found)} validation samples are in the 'train' split too (first: number "
            f"{shared[0]}); a fusion would be learnt on data that members were trained on, where they are too good: "
            "take them out of one of the two"
        )


def check_estimator(name: str, model: Any, kind: str, task: Task, where: str) -> None:
    """What an estimator gives, and the order of its classes, are known."""
    check_convertible(model, f"{where}: member '{name}'")
    classes = getattr(model, "classes_", None)
    gives = "numbers" if classes is None else "probabilities"
    if kind != gives:
        raise RecipeError(f"{where}.gives: '{name}' is a {type(model).__name__}, which gives {gives}, not {kind}")
    if classes is None:
        return
    found = np.asarray(classes).tolist()
    wanted: list[Any] = list(range(len(found)))
    if found and isinstance(found[0], str) and task.classes:
        wanted = list(task.classes)
    if found != wanted:
        raise RecipeError(
            f"{where}: member '{name}' has the classes {found}, in this order; those of the task are {wanted}: fit it "
            "on the same labels"
        )


def check_file(name: str, model: onnx.ModelProto, task: Task, where: str) -> None:
    """A file that names the task's classes, as those of scikit-learn's kind do, has them in the task's order."""
    for node in model.graph.node:
        for attribute in node.attribute:
            found = [each.decode() for each in attribute.strings] if attribute.name == "classlabels_strings" else []
            if sorted(found) == sorted(task.classes) and found != list(task.classes):
                raise RecipeError(
                    f"{where}: member '{name}' has the classes {found}, in this order; those of the task are "
                    f"{list(task.classes)}: write it again, from a model of the same labels"
                )


def check_order(name: str, rows: np.ndarray, labels: np.ndarray, task: Task, where: str) -> None:
    """A member whose answers would be right in another order of its classes was trained on another order.

    Its top classes have to say so, and the means of its probabilities too: they rank samples right where a member is
    only too fond of one class.

    Raises:
        DataError: with the columns in the order that is right most often, a fifth of the samples more would be right,
            or half of those whose classes change places.
    """
    classes = rows.shape[1]
    if classes > _MOST_CLASSES or labels.min() < 0 or labels.max() >= classes:
        return  # of labels that are no classes the metric says what is wrong
    samples = np.bincount(labels, minlength=classes)
    if samples.min() < _PER_CLASS:
        return
    counts, sums = np.zeros((classes, classes), int), np.zeros((classes, classes))  # [label, column]
    np.add.at(counts, (labels, rows.argmax(1)), 1)
    np.add.at(sums, labels, rows / np.maximum(rows.mean(0), LEAST))
    order, by_means = (
        scipy.optimize.linear_sum_assignment(table, maximize=True)[1] for table in (counts, sums / samples[:, None])
    )
    as_is, reordered = int(np.trace(counts)), int(counts[np.arange(classes), order].sum())
    moved = order != np.arange(classes)
    changed_places = reordered - as_is > _OF_MOVED * samples[moved].sum() and _is_no_chance(counts[moved], order, moved)
    if not (reordered - as_is > _REORDERED * len(labels) or changed_places) or not np.array_equal(order, by_means):
        return
    names = [task.classes[int(place)] if task.classes else str(place) for place in np.argsort(order)]
    raise DataError(
        f"{where}: member '{name}' is right for {as_is} of {len(labels)} validation samples, but would be for "
        f"{reordered} if its columns stood for {', '.join(names)}: it has the classes in another order than the task"
    )


def check_threshold(task: Task, where: str) -> None:
    """A metric that takes what is above 0 for yes would call every probability one.

    Raises:
        RecipeError: the task has such a metric.
    """
    found = [metric.name for metric in task_metrics(task) if metric.name in _ABOVE_ZERO]
    if found:
        raise RecipeError(
            f"{where}.returns_logits: '{found[0]}' takes a label for said where the output is above 0, as every "
            "probability is; leave it out"
        )


def _is_no_chance(counts: np.ndarray, order: np.ndarray, moved: np.ndarray) -> bool:
    """Whether a member that cannot tell such classes apart would hardly ever look as if they had changed places.

    Args:
        counts: samples of the classes that move, `[label, column]`.
        order: column of each class, were it to be right most often.
        moved: which classes these are.
    """
    rows = np.arange(len(counts))
    then, now = int(counts[rows, order[moved]].sum()), int(counts[rows, np.flatnonzero(moved)].sum())
    pairs = len(order) * (len(order) - 1) / 2  # of which the worst is seen
    return float(scipy.stats.binom.sf(then - 1, then + now, 0.5)) * pairs < _CHANCE


def check_unit(name: str, rows: np.ndarray, where: str) -> None:
    """Numbers that exclude each other are shares of 1, as near as a regression comes to it; logits are not."""
    low, high = np.quantile(rows, (0.01, 0.99))
    if low < -1 or high > 2:
        raise DataError(
            f"{where}.exclusive: 98 % of what member '{name}' gives lie between {low:.3g} and {high:.3g}, and labels "
            "that exclude each other are numbers between 0 and 1; let it give probabilities (a sigmoid of its logits)"
        )


def listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
