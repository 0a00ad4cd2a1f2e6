"""Metrics of several labels per sample: logits `(N, K)`, of which those above 0 say yes; labels 0 or 1 `(N, K)`."""

from __future__ import annotations

import numpy as np


def share_of_labels(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The share of its labels that each sample got right, `(N,)` (one minus the Hamming loss)."""
    right: np.ndarray = ((output > 0) == (labels > 0)).mean(axis=1)
    return right


def found_and_missed(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per sample: labels rightly given, wrongly given, missed; `(N, 3)`."""
    said, true = output > 0, labels > 0
    return np.stack([(said & true).sum(1), (said & ~true).sum(1), (~said & true).sum(1)], axis=1)


def f1_micro(rows: np.ndarray) -> float:
    """F1 over all labels of all samples; 0 where there is none, said or true."""
    right, wrong, missed = rows.sum(axis=0)
    return float(2 * right / (2 * right + wrong + missed)) if right + wrong + missed else 0.0


def output_and_labels(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows `(N, 2 * K)`."""
    return np.concatenate([output.astype(np.float64), labels], axis=1)


def mean_precision(rows: np.ndarray) -> float:
    """Mean over labels that occur of the average precision: the mean precision at each sample that has the label.

    Samples with equal outputs are taken together, so that their order cannot matter.
    """
    outputs, labels = np.split(rows, 2, axis=1)
    found = [_average_precision(outputs[:, k], labels[:, k] > 0) for k in range(labels.shape[1]) if labels[:, k].any()]
    return float(np.mean(found)) if found else 0.0


def label_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    """Logits and labels of one shape `(N, K)`, labels 0 or 1."""
    if output.ndim != 2 or output.shape != labels.shape:
        return f"needs an output and labels of one shape (N, labels), got {output.shape} and {labels.shape}"
    if not np.isin(labels, (0, 1)).all():
        return "labels must be 0 or 1, one column for each label"
    return ""


def _average_precision(output: np.ndarray, true: np.ndarray) -> float:
    order = np.argsort(-output, kind="stable")
    last_of_equals = np.append(np.flatnonzero(np.diff(output[order])), len(output) - 1)
    hits = np.cumsum(true[order])[last_of_equals]
    precision = hits / (last_of_equals + 1)
    return float((precision * np.diff(hits, prepend=0)).sum() / true.sum())
