"""Predictions that changed between right and wrong, and how far a classifier's confidence is from its accuracy."""

import dataclasses

import numpy as np

_EXAMPLES = 10
BINS = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flips:
    """Samples whose answer changed; the examples are the first ones, by their index in the test split."""

    lost: int  # right -> wrong
    won: int  # wrong -> right
    lost_examples: tuple[int, ...]
    won_examples: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """Expected calibration error of both, see `calibration_error`."""

    original: float
    final: float
    bins: int = BINS


def flips(original: np.ndarray, final: np.ndarray, higher_is_better: bool) -> Flips:
    """Compare scores of 0 and 1, `(N,)` each."""
    lost, won = (np.flatnonzero(each) for each in (original > final, original < final))
    lost, won = (lost, won) if higher_is_better else (won, lost)
    first_lost, first_won = (tuple(map(int, each[:_EXAMPLES])) for each in (lost, won))
    return Flips(lost=len(lost), won=len(won), lost_examples=first_lost, won_examples=first_won)


def has_confidence(output: np.ndarray, labels: np.ndarray) -> bool:
    """Whether an output is one score per class: float `(N, C)`, C >= 2, beside integer labels `(N,)` below C."""
    one_each = labels.ndim == 1 and labels.dtype.kind in "iu" and output.ndim == 2 and output.dtype.kind == "f"
    return one_each and output.shape[1] >= 2 and bool(((labels >= 0) & (labels < output.shape[1])).all())


def are_probabilities(output: np.ndarray) -> bool:
    """Whether the rows `(N, C)` of a float model are probabilities: not negative, and each sums to 1."""
    rows = output.astype(np.float64)
    return bool((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3))


def calibration_error(
    output: np.ndarray, labels: np.ndarray, bins: int = BINS, probabilities: bool | None = None
) -> float:
    """Expected calibration error (Guo et al., ICML 2017, eq. 3).

    Samples are put into `bins` bins of equal width by the confidence in their first answer; the error is the mean of
    |accuracy - confidence| over the bins, weighted by their samples.

    Args:
        output: logits or probabilities `(N, C)`.
        labels: `(N,)`.
        bins: how many.
        probabilities: which of them; None: as `are_probabilities` says. Of a quantized model it is the original's that
            says so, for rows of its own rounded probabilities need not sum to 1.
    """
    rows = output.astype(np.float64)
    if not (are_probabilities(output) if probabilities is None else probabilities):
        rows = np.exp(rows - rows.max(1, keepdims=True))
        rows /= rows.sum(1, keepdims=True)
    confidence, right = np.clip(rows.max(1), 0, 1), rows.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, right, bins) - np.bincount(index, confidence, bins)  # per bin: samples times the gap
    return float(np.abs(gaps).sum() / len(labels))
