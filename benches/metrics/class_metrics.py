"""Metrics of logits over classes: one class for each sample, or one for each position (pixels, tokens).

Classes stand on axis 1, as torch's cross entropy wants them. A position whose label is `NO_LABEL` counts nowhere.
"""

from __future__ import annotations

import numpy as np

from ...core.task import NO_LABEL


def top1(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the top class of `(N, classes)` is the label `(N,)`."""
    hits: np.ndarray = np.equal(output.argmax(axis=1), labels).astype(np.float64)
    return hits


def top5(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the label is among the five top classes; ties count against it: a constant output earns nothing."""
    own = output[np.arange(len(output)), labels]
    not_lower = (output >= own[:, None]).sum(axis=1)
    hits: np.ndarray = (not_lower <= 5).astype(np.float64)
    return hits


def prediction_and_label(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows `(N, 2)`."""
    return np.stack([output.argmax(axis=1), labels], axis=1)


def f1_macro(rows: np.ndarray) -> float:
    """Unweighted mean of the F1 of every class that occurs, predicted or true; rows are (predicted, label)."""
    classes = int(rows.max()) + 1
    predicted, true = (np.bincount(rows[:, column], minlength=classes) for column in (0, 1))
    hits = np.bincount(rows[rows[:, 0] == rows[:, 1], 0], minlength=classes)
    occurs = (predicted + true) > 0
    return float((2 * hits[occurs] / (predicted + true)[occurs]).mean())


def overlaps(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per sample and class: positions both predicted and true, positions either; `(N, 2 * classes)`."""
    count, classes = output.shape[:2]
    predicted, true = output.argmax(axis=1).reshape(count, -1), labels.reshape(count, -1)
    predicted = np.where(true == NO_LABEL, NO_LABEL, predicted)
    both = np.stack([((predicted == k) & (true == k)).sum(axis=1) for k in range(classes)], axis=1)
    either = np.stack([((predicted == k) | (true == k)).sum(axis=1) for k in range(classes)], axis=1)
    return np.concatenate([both, either], axis=1)


def mean_overlap(rows: np.ndarray) -> float:
    """Mean over the classes that occur of intersection over union, both summed over samples (PASCAL VOC)."""
    both, either = np.split(rows.sum(axis=0), 2)
    occurs = either > 0
    return float((both[occurs] / either[occurs]).mean()) if occurs.any() else 0.0


def right_and_counted(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Positions whose top class is right, and positions that have a label; `(N, 2)`."""
    count = len(labels)
    right = (output.argmax(axis=1) == labels).reshape(count, -1).sum(axis=1)
    return np.stack([right, (labels != NO_LABEL).reshape(count, -1).sum(axis=1)], axis=1)


def share_right(rows: np.ndarray) -> float:
    """All right positions over all that have a label."""
    right, counted = rows.sum(axis=0)
    return float(right / counted) if counted else 0.0


def class_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    """Logits `(N, classes)` and integer labels `(N,)`."""
    if output.ndim != 2:
        return _rank("(N, classes)", output)
    return _labels_misfit(output, labels, "(N,)")


def position_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    """Logits `(N, classes, ...)` and integer labels `(N, ...)`, of which some may be missing."""
    if output.ndim < 3:
        return _rank("(N, classes, ...)", output)
    if labels.shape == output.shape[:-1] != (len(output), *output.shape[2:]):
        return f"needs the classes of {output.shape} on axis 1, they are on the last: logits.movedim(-1, 1)"
    expected = f"{(len(output), *output.shape[2:])}, one class per position"
    return _labels_misfit(output, np.where(labels == NO_LABEL, 0, labels), expected)


def _rank(wanted: str, output: np.ndarray) -> str:
    return (
        f"needs an output of shape {wanted}, got {output.shape}; "
        "name the right output with Metric(output=...), or give the task a metric of its own"
    )


def _labels_misfit(output: np.ndarray, labels: np.ndarray, expected: str) -> str:
    if labels.shape != (len(output), *output.shape[2:]) or not np.issubdtype(labels.dtype, np.integer):
        return f"needs integer labels of shape {expected}, got {labels.dtype} of shape {labels.shape}"
    return range_misfit(output.shape[1], labels)


def range_misfit(classes: int, labels: np.ndarray) -> str:
    """One or more integer labels, each of a class that there is."""
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest >= 0 and highest < classes:
        return ""
    wrong = lowest if lowest < 0 else highest
    return (
        f"the model gives {classes} outputs (classes 0 to {classes - 1}), but there is a label "
        f"{wrong}; the labels or the model's last layer belong to another task"
    )
