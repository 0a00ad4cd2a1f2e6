"""What can be fused: members that say the same things of the same inputs, and data that they were not trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.errors import DataError, RecipeError
from ...core.task import Task
from ..data import sample_digests
from .fusing import softmax

_SHARED = 0.01  # share of validation samples that may be in `train` too, as rare twins are in real data


def member_rows(name: str, output: np.ndarray, kind: str, where: str) -> np.ndarray:
    """A member's output as `(N, C)` in float64: probabilities, or numbers."""
    if output.ndim > 2 or (output.ndim == 1 and kind != "numbers"):
        raise DataError(f"{where}: member '{name}' gives {output.shape}; what is fused is (N, classes) or (N, numbers)")
    rows = output.reshape(len(output), -1).astype(np.float64)
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise DataError(
            f"{where}: member '{name}' gives NaN or infinity for {(~finite).sum()} of {len(rows)} validation samples; "
            "check its weights and how its input is prepared, or leave it out"
        )
    if len(rows) > 1 and float(np.ptp(rows, axis=0).max()) <= 1e-9:
        raise DataError(
            f"{where}: member '{name}' gives the same output for all {len(rows)} validation samples; it has learnt "
            "nothing, or reads another kind of input: leave it out"
        )
    if kind == "numbers":
        return rows
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
    return softmax(rows) if kind == "logits" else rows


def check_same_width(widths: Mapping[str, int], task: Task, kinds: Mapping[str, str], where: str) -> None:
    what = "numbers" if "numbers" in kinds.values() else "classes"
    if len(set(widths.values())) != 1:
        raise DataError(f"{where}: members differ in their number of {what}: {listed(widths)}")
    if task.classes and next(iter(widths.values())) != len(task.classes):
        raise DataError(f"{where}: the task names {len(task.classes)} classes, members give {listed(widths)}")


def check_apart(task: Task, where: str) -> None:
    """What is learnt on validation data is learnt from answers that members have not been taught."""
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


def listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
