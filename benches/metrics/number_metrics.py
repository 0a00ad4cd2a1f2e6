"""Metrics of numbers: how far outputs are from labels of the same shape."""

from __future__ import annotations

import math

import numpy as np


def absolute(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean absolute error of each sample, `(N,)`."""
    per_sample: np.ndarray = np.abs(_errors(output, labels)).mean(axis=1)
    return per_sample


def squared(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean squared error of each sample, `(N,)`."""
    per_sample: np.ndarray = (_errors(output, labels) ** 2).mean(axis=1)
    return per_sample


def root_mean(scores: np.ndarray) -> float:
    """Root of the mean over samples."""
    return math.sqrt(scores.mean())


def number_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    """Outputs and labels of one shape; `(N, 1)` goes with `(N,)`."""
    if _aligned(output).shape == _aligned(labels).shape:
        return ""
    return f"output of shape {output.shape} against labels of shape {labels.shape}; they must be the same"


def _aligned(array: np.ndarray) -> np.ndarray:
    """`(N, 1)` as `(N,)`: else a subtraction against `(N,)` would broadcast to `(N, N)`."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _errors(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    difference: np.ndarray = _aligned(output).astype(np.float64) - _aligned(labels)
    return difference.reshape(len(difference), -1)
