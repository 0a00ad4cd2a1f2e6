"""Retrieval with embeddings `(N, D)`: every sample asks for the others with its label, by cosine similarity.

A sample's score depends on which others are there; an interval takes these as given.
"""

from __future__ import annotations

import numpy as np

_AT_ONCE = 1024  # rows of the similarity matrix


def recall_at(k: int, output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether one of the `k` nearest others has the sample's label, `(N,)`; ties count against it."""
    unit = output.astype(np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    parts = []
    for start in range(0, len(unit), _AT_ONCE):
        similar = unit[start : start + _AT_ONCE] @ unit.T
        rows = np.arange(len(similar))
        same = labels[start : start + _AT_ONCE, None] == labels[None, :]
        same[rows, start + rows] = False
        nearest = np.where(same, similar, -np.inf).max(axis=1)
        similar[rows, start + rows] = -np.inf
        before = (~same & (similar >= nearest[:, None] - 1e-12)).sum(axis=1)
        parts.append((before < k).astype(np.float64))
    return np.concatenate(parts)


def embedding_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    """Embeddings `(N, D)`, labels `(N,)` that each occur twice."""
    if output.ndim != 2:
        return f"needs embeddings of shape (N, D), got {output.shape}"
    if labels.ndim != 1:
        return f"needs one label for each sample, got labels of shape {labels.shape}"
    kinds, counts = np.unique(labels, return_counts=True)
    if (counts < 2).any():
        return f"only one sample has the label {kinds[counts < 2][0]}: there is no other for it to find"
    return ""
