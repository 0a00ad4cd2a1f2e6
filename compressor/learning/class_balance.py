"""Classes of different size: weights that make them count alike, and what is right and wrong of each."""

from collections.abc import Sequence

import numpy as np
import torch

from ...core.errors import DataError

_SHOWN = 20


def balanced(labels: np.ndarray, classes: int, where: str) -> torch.Tensor:
    """Weight of each class, float32 `(classes,)`: samples / (classes * samples of the class) (King & Zeng, 2001).

    Args:
        labels: integers `(N, ...)`; negative ones are missing.
        classes: how many the model tells apart.
        where: stands in front of errors.

    Raises:
        DataError: a class has no sample, or a label is no class; names it.
    """
    counts = np.bincount(labels[labels >= 0].reshape(-1), minlength=classes)
    if len(counts) > classes:
        raise DataError(
            f"{where}.class_weights: label {len(counts) - 1} in 'train', but the model has {classes} classes"
        )
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise DataError(
            f"{where}.class_weights: class {empty[0]} has no sample in the 'train' split; there is nothing to balance"
        )
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)


def report(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Precision, recall, F1 and number of samples of each class, a line each; of more than 20 those with the least F1.

    A class that is never answered has precision 0.

    Args:
        logits: `(N, classes)`.
        labels: integers `(N,)`.
        classes: their names; empty: their numbers.
    """
    answers, count = logits.argmax(1), logits.shape[1]
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (labels, answers), 1)
    lines: list[tuple[float, str]] = []
    for index, name in enumerate(classes or map(str, range(count))):
        right, said, there = int(table[index, index]), int(table[:, index].sum()), int(table[index].sum())
        precision, recall = right / max(1, said), right / max(1, there)
        f1 = 2 * right / max(1, said + there)
        figures = f"precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f} ({there:,} samples)"
        lines.append((f1, f"class {name}: {figures}"))
    shown = lines if count <= _SHOWN else sorted(lines, key=lambda line: line[0])[:_SHOWN]
    return [text for _, text in shown]
