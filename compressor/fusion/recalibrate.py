"""Fused probabilities made as sure as they are right: calibrations by name, in numpy and as nodes of an ONNX graph."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import scipy

from ...exporters.graph.compose import Nodes
from .fusing import EDGE, LEAST, log_loss, softmax, write_logs

_GRID = 1000  # isotonic: probabilities are told apart to 1 / _GRID, so that the table stays small and its slopes finite


class Calibration(Protocol):
    """Probabilities `(N, C)` to better ones."""

    def __call__(self, shares: np.ndarray, /) -> np.ndarray: ...

    def write(self, nodes: Nodes, shares: str, /) -> str:
        """The same as nodes behind the tensor `shares`; the name of what they give."""
        ...


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Probabilities made as sure as they are right by one number (Guo et al., 2017); the top class stays."""

    value: float

    @classmethod
    def fit(cls, shares: np.ndarray, labels: np.ndarray) -> "Temperature":
        """The one with the least log loss."""

        def loss(log_value: float) -> float:
            return log_loss(cls(float(np.exp(log_value)))(shares), labels)

        found = scipy.optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
        return cls(float(np.exp(found.x)))

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        return softmax(np.log(np.maximum(shares, LEAST)) / self.value)

    def write(self, nodes: Nodes, shares: str) -> str:
        logs = write_logs(nodes, shares)
        return nodes.add("Softmax", nodes.add("Div", logs, nodes.constant(self.value)), axis=-1)


@dataclasses.dataclass(frozen=True)
class Platt:
    """A sigmoid of every class's log-odds (Platt, 1999), normalised over the classes (Zadrozny & Elkan, 2002)."""

    slope: np.ndarray  # (C,)
    shift: np.ndarray  # (C,)

    @classmethod
    def fit(cls, shares: np.ndarray, labels: np.ndarray) -> "Platt":
        """Logistic regression of each class against the rest, towards the targets of `_targets`."""
        odds, targets = _log_odds(shares), _targets(labels, shares.shape[1])

        def fitted(x: np.ndarray, t: np.ndarray) -> np.ndarray:
            def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
                z = ab[0] * x + ab[1]
                error = scipy.special.expit(z) - t
                return float((np.logaddexp(0, z) - t * z).mean()), np.array([(error * x).mean(), error.mean()])

            found: np.ndarray = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B").x
            return found

        both = np.array([fitted(odds[:, each], targets[:, each]) for each in range(shares.shape[1])])
        return cls(both[:, 0], both[:, 1])

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        return _normalised(scipy.special.expit(_log_odds(shares) * self.slope + self.shift))

    def write(self, nodes: Nodes, shares: str) -> str:
        kept = nodes.add("Clip", shares, nodes.constant(EDGE), nodes.constant(1 - EDGE))
        odds = nodes.add("Log", nodes.add("Div", kept, nodes.add("Sub", nodes.constant(1), kept)))
        scaled = nodes.add("Add", nodes.add("Mul", odds, nodes.constant(self.slope)), nodes.constant(self.shift))
        return _normalised_nodes(nodes, nodes.add("Sigmoid", scaled))


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A rising step for every class (Zadrozny & Elkan, 2002) with lines between its steps, normalised as in Platt."""

    tables: tuple[tuple[np.ndarray, np.ndarray], ...]  # of every class: probabilities, rising, and what becomes of them

    @classmethod
    def fit(cls, shares: np.ndarray, labels: np.ndarray) -> "Isotonic":
        """Pool adjacent violators, towards the targets of `_targets`, which keep every value above 0 and below 1."""
        targets = _targets(labels, shares.shape[1])
        return cls(tuple(_table(shares[:, each], targets[:, each]) for each in range(shares.shape[1])))

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        columns = [np.interp(shares[:, each], *table) for each, table in enumerate(self.tables)]
        return _normalised(np.stack(columns, axis=1))

    def write(self, nodes: Nodes, shares: str) -> str:
        """`y_0 + sum_k rise_k * clip((x - x_k) / width_k, 0, 1)`."""
        longest = max(len(x) for x, _ in self.tables) - 1
        starts, widths, rises = (np.full((len(self.tables), longest or 1), fill) for fill in (0.0, 1.0, 0.0))
        for each, (x, y) in enumerate(self.tables):
            starts[each, : len(x) - 1], widths[each, : len(x) - 1] = x[:-1], np.diff(x)
            rises[each, : len(x) - 1] = np.diff(y)
        last = nodes.constant([2], np.int64)
        past = nodes.add("Sub", nodes.add("Unsqueeze", shares, last), nodes.constant(starts))
        part = nodes.add("Clip", nodes.add("Div", past, nodes.constant(widths)), nodes.constant(0), nodes.constant(1))
        risen = nodes.add("ReduceSum", nodes.add("Mul", part, nodes.constant(rises)), last, keepdims=0)
        first = nodes.constant([y[0] for _, y in self.tables])
        return _normalised_nodes(nodes, nodes.add("Add", risen, first))


CALIBRATIONS: Mapping[str, Any] = {"temperature": Temperature, "platt": Platt, "isotonic": Isotonic}


def best_calibration(
    names: Sequence[str],
    shares: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[str, Calibration | None, dict[str, float]]:
    """The calibration with the least log loss out of fold, fitted on all; None where none is below doing nothing.

    One that costs some of the main metric is not taken, however much surer of itself it is: each class has its own
    curve, so that the top class may change.

    Args:
        names: in `CALIBRATIONS`.
        shares: `(N, C)`; each sample's as it was predicted without it.
        parts: indices of the folds.
        score: (shares, labels) -> the main metric such that higher is better.

    Returns:
        Its name, the calibration, and the log loss of each by name; "none" is that of the shares as they are.
    """
    losses, kept = {"none": log_loss(shares, labels)}, ["none"]
    for name in names:
        made = np.empty_like(shares)
        for part in parts:
            rest = np.setdiff1d(np.arange(len(shares)), part)
            made[part] = CALIBRATIONS[name].fit(shares[rest], labels[rest])(shares[part])
        losses[name] = log_loss(made, labels)
        kept += [name] if score(made, labels) >= score(shares, labels) else []
    best = min(kept, key=lambda name: losses[name])
    return best, (None if best == "none" else CALIBRATIONS[best].fit(shares, labels)), losses


def _targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """1 and 0 drawn in a little, `(N, C)`: `(n + 1) / (n + 2)` of a class with n samples, `1 / (m + 2)` of m others."""
    own = np.eye(classes, dtype=bool)[labels]
    counts = own.sum(0)
    targets: np.ndarray = np.where(own, (counts + 1) / (counts + 2), 1 / (len(labels) - counts + 2))
    return targets


def _log_odds(shares: np.ndarray) -> np.ndarray:
    odds: np.ndarray = scipy.special.logit(np.clip(shares, EDGE, 1 - EDGE))
    return odds


def _table(shares: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rising function bends: `(K,)` probabilities and values."""
    x, place, counts = np.unique(np.round(shares * _GRID) / _GRID, return_inverse=True, return_counts=True)
    means = np.bincount(place, targets) / counts
    y = scipy.optimize.isotonic_regression(means, weights=counts).x
    bends = np.ones(len(y), dtype=bool)
    bends[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return x[bends], y[bends]


def _normalised(shares: np.ndarray) -> np.ndarray:
    whole: np.ndarray = shares / shares.sum(1, keepdims=True)
    return whole


def _normalised_nodes(nodes: Nodes, shares: str) -> str:
    return nodes.add("Div", shares, nodes.add("ReduceSum", shares, nodes.constant([1], np.int64), keepdims=1))
