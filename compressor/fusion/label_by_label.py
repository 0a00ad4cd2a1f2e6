"""What fuses and calibrates classes, for several labels: each is a yes or a no, two classes, apart from the others.

What is learnt is learnt on all labels together: a gate, a temperature or a curve is the same for each.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ...exporters.graph.compose import Nodes
from .fusing import EDGE, Combination, Rule, Smoothing
from .recalibrate import Calibration, best_calibration


def as_classes(shares: np.ndarray) -> np.ndarray:
    """Probabilities of labels `(N, L)` or, of members, `(N, members, L)`, as `(N * L, 2)` or `(N * L, members, 2)`.

    None is nearer to 0 or 1 than `EDGE`: the other class, 1 less it, would be rounding in single precision.
    """
    yes = np.clip(np.moveaxis(shares, -1, 1).reshape(-1, *shares.shape[1:-1]), EDGE, 1 - EDGE)
    return np.stack([1 - yes, yes], axis=-1)


def as_class_numbers(labels: np.ndarray) -> np.ndarray:
    """Labels of 0 or 1, `(N, L)`, as classes `(N * L,)`."""
    numbers: np.ndarray = (labels.ravel() > 0.5).astype(np.int64)
    return numbers


def as_labels(classes: np.ndarray, width: int) -> np.ndarray:
    """`(N * L, 2)` back to `(N, L)`; width: L."""
    return classes[:, 1].reshape(-1, width)


def rows_of(samples: np.ndarray, width: int) -> np.ndarray:
    """Where the labels of these samples stand among `N * L`."""
    rows: np.ndarray = (samples[:, None] * width + np.arange(width)).ravel()
    return rows


@dataclasses.dataclass(frozen=True)
class EachLabelFused:
    """A combination of classes, of each label apart: `(N, members, L)` to `(N, L)`."""

    inner: Combination

    @property
    def weights(self) -> np.ndarray | None:
        """Of the members, where the rule has such."""
        return getattr(self.inner, "weights", None)

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        return as_labels(self.inner(as_classes(stack)), stack.shape[2])

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        members = nodes.add("Flatten", nodes.add("Transpose", stack, perm=[0, 2, 1]), axis=2)
        yes = nodes.add("Unsqueeze", members, nodes.constant([2], np.int64))
        return _yes(nodes, self.inner.write(nodes, _both(nodes, yes, axis=2), 2), classes)


@dataclasses.dataclass(frozen=True)
class EachLabel:
    """A calibration or a smoothing of classes, of each label apart: `(N, L)` to `(N, L)`."""

    inner: Calibration | Smoothing
    width: int  # L

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        return as_labels(self.inner(as_classes(shares)), self.width)

    def write(self, nodes: Nodes, shares: str) -> str:
        yes = nodes.add("Reshape", shares, nodes.constant([-1, 1], np.int64))
        return _yes(nodes, self.inner.write(nodes, _both(nodes, yes, axis=1)), self.width)


def each_label_apart(rule: Rule) -> Rule:
    """A rule of classes for stacks `(N, members, L)` and labels `(N, L)`."""
    make, fit = rule.make, rule.fit
    return Rule(
        make=make and (lambda weights: EachLabelFused(make(weights))),
        fit=fit and (lambda stack, labels, _: EachLabelFused(fit(as_classes(stack), as_class_numbers(labels), True))),
    )


def best_of_each_label(
    names: Sequence[str],
    shares: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[str, Calibration | None, dict[str, float]]:
    """See `best_calibration`; shares and labels are `(N, L)`."""
    width = shares.shape[1]
    best, found, losses = best_calibration(
        names,
        as_classes(shares),
        as_class_numbers(labels),
        [rows_of(part, width) for part in parts],
        lambda made, _: score(as_labels(made, width), labels),
    )
    return best, None if found is None else EachLabel(found, width), losses


def _both(nodes: Nodes, yes: str, axis: int) -> str:
    kept = nodes.add("Clip", yes, nodes.constant(EDGE), nodes.constant(1 - EDGE))
    return nodes.add("Concat", nodes.add("Sub", nodes.constant(1), kept), kept, axis=axis)


def _yes(nodes: Nodes, classes: str, width: int) -> str:
    column = nodes.add("Gather", classes, nodes.constant(1, np.int64), axis=1)
    return nodes.add("Reshape", column, nodes.constant([-1, width], np.int64))
