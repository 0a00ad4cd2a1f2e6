"""Mean average precision of detected boxes, as COCO defines it (Lin et al., 2014; without crowds and size ranges).

The output is `(N, boxes, 6)`: x1, y1, x2, y2, score, class; a row with a score of 0 or less is no box. Labels are
`(N, boxes, 5)`: x1, y1, x2, y2, class; a row of class -1 is no box.
"""

from __future__ import annotations

import numpy as np

_MOST = 100  # boxes of an image that count, the surest ones
_RECALLS = np.linspace(0, 1, 101)
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))


def matched_boxes(output: np.ndarray, labels: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> np.ndarray:
    """Per image, what average precision needs of it.

    Returns:
        `(N, 3 * 100 + classes)`: score, class and, bit by bit, at which thresholds each box was matched; true boxes of
        each class.
    """
    classes = int(labels[..., 4].max()) + 1
    rows = np.zeros((len(output), 3 * _MOST + classes))
    for row, detected, true in zip(rows, output, labels):
        true = true[true[:, 4] >= 0]
        detected = detected[(detected[:, 4] > 0) & (detected[:, 5] < classes)]
        detected = detected[np.argsort(-detected[:, 4], kind="stable")[:_MOST]]
        count = len(detected)
        row[:count], row[_MOST : _MOST + count] = detected[:, 4], detected[:, 5]
        row[2 * _MOST : 2 * _MOST + count] = _matches(detected, true, thresholds)
        row[3 * _MOST :] = np.bincount(true[:, 4].astype(int), minlength=classes)
    return rows


def matched_boxes_at_half(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same at the one threshold 0.5."""
    return matched_boxes(output, labels, THRESHOLDS[:1])


def mean_average_precision(rows: np.ndarray) -> float:
    """Mean over thresholds and the classes that occur of precision at 101 recalls."""
    return _mean_average_precision(rows, len(THRESHOLDS))


def mean_average_precision_at_half(rows: np.ndarray) -> float:
    """The same at the one threshold 0.5."""
    return _mean_average_precision(rows, 1)


def box_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    """Shapes, and boxes whose corners are in order."""
    if output.ndim != 3 or output.shape[2] != 6:
        return f"needs an output of shape (N, boxes, 6): x1, y1, x2, y2, score, class; got {output.shape}"
    if labels.ndim != 3 or labels.shape[2] != 5:
        return f"needs labels of shape (N, boxes, 5): x1, y1, x2, y2, class (-1: no box); got {labels.shape}"
    true = labels[labels[..., 4] >= 0]
    if not len(true):
        return "there is no box in the labels"
    if (true[:, :2] > true[:, 2:4]).any():
        return "a box in the labels has x1 > x2 or y1 > y2; give two corners, not a corner and a size"
    return ""


def _matches(detected: np.ndarray, true: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """For each box the thresholds at which it has a true box of its own; the surest box chooses first."""
    bits = np.zeros(len(detected), np.int64)
    if not len(true) or not len(detected):
        return bits
    overlap = np.where(detected[:, None, 5] == true[None, :, 4], _overlap(detected[:, :4], true[:, :4]), 0.0)
    for bit, threshold in enumerate(thresholds):
        free = np.ones(len(true), bool)
        for index, row in enumerate(overlap):
            possible = np.where(free & (row >= threshold), row, -1.0)
            best = int(possible.argmax())
            if possible[best] >= 0:
                free[best] = False
                bits[index] |= 1 << bit
    return bits


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union, `(len(first), len(second))`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - both
    return np.asarray(both / np.maximum(union, np.finfo(np.float64).tiny))


def _mean_average_precision(rows: np.ndarray, thresholds: int) -> float:
    scores, kinds, bits = (rows[:, part * _MOST : (part + 1) * _MOST].ravel() for part in range(3))
    true = rows[:, 3 * _MOST :].sum(axis=0)
    order = np.flatnonzero(scores)
    order = order[np.argsort(-scores[order], kind="stable")]
    kinds = kinds[order]
    hit = ((bits[order, None].astype(np.int64) >> np.arange(thresholds)) & 1).astype(bool)
    found = [_average_precision(hit[kinds == kind], true[kind]) for kind in np.flatnonzero(true)]
    return float(np.mean(found)) if found else 0.0


def _average_precision(hit: np.ndarray, true: float) -> np.ndarray:
    """Precision at `_RECALLS`, averaged; `hit` `(boxes, thresholds)`, the surest first."""
    if not len(hit):
        return np.zeros(hit.shape[1])
    hits = np.cumsum(hit, axis=0)
    precision = hits / np.arange(1, len(hit) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    means = []
    for column in range(hit.shape[1]):
        place = np.searchsorted(hits[:, column] / true, _RECALLS, side="left")
        reached = place < len(hit)
        means.append(np.where(reached, precision[np.minimum(place, len(hit) - 1), column], 0.0).mean())
    return np.array(means)
