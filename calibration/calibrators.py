"""From what was seen of a tensor to the range that INT8 should cover. Pure functions."""

import functools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from ..core.errors import DataError
from .grid import Grid, grid_of, squared_error
from .histogram import Histogram
from .observer import Observed

# (histogram, bits, symmetric) -> (low, high), real values with low <= 0 <= high and low < high.
#   symmetric: (-m, m), or (0, m) where nothing negative was seen; scale = m / (2 ** (bits - 1) - 1)
#   else:      scale = (high - low) / (2 ** bits - 1), zero point = round(-low / scale)
# Never wider than what was seen, but for a tensor that is zero everywhere: (0, 1). Nothing seen: DataError.
Calibrator = Callable[[Observed, int, bool], tuple[float, float]]
Grids = Callable[[float, float], Sequence[Grid]]  # every way in which a range (low, high) may be written
Loss = Callable[[float, float], float]  # of the range (low, high)

_PERCENTILE = 99.99
# Clips tried, as shares of what was seen, before _FINE more between the neighbours of the best of them. The squared
# error changes with the ratio of two clips; the divergence from bin to bin, and has as many valleys as levels.
_BY_RATIO, _BY_BIN, _FINE = np.geomspace(1.0, 1 / 512, 96), np.linspace(1.0, 1 / 32, 256), 33
_ROUNDS = 2  # of searching one end with the other fixed
_SMALLEST = 2.0**-100  # a smaller range has no scale among the normal float32 numbers; it counts as zero
_ANYTHING = 1.0  # bound for a tensor of zeros: any is exact, and with 1 no scale that it enters becomes tiny


def min_max(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """Everything that was seen."""
    return _range(*_seen(histogram), symmetric)


def percentile(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """What is left when the outermost 0.01 % are cut (symmetric: by absolute value; else half on each side).

    Where fewer values than that differ from zero, all are kept: the cut would leave nothing of the tensor.
    """
    low, high = _seen(histogram)
    edges, counts = _distribution(histogram, symmetric)
    tail = (1 - _PERCENTILE / 100) * (1 if symmetric else 0.5)
    top = max(_quantile(edges, counts, 1 - tail), 0.0)
    bottom = -top if symmetric else min(_quantile(edges, counts, tail), 0.0)
    if max(-bottom, top) <= edges[1] - edges[0]:
        return _range(low, high, symmetric)
    return _range(max(low, bottom), min(high, top), symmetric)


def entropy(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The clip that loses least information, the least KL(P || Q) (Migacz, 8-bit Inference with TensorRT, GTC 2017).

    P is the distribution with everything clipped counted in its outermost bins, Q what is inside in as many levels as
    the integers have, spread again over the bins that are filled. No clip is tried with fewer bins than levels. The bin
    at zero counts as its neighbour does: behind a Relu it would outweigh all others.
    """
    edges, counts = _distribution(histogram, symmetric)
    zero = int(np.searchsorted(edges, 0.0))
    if len(counts) > 1:
        counts[zero] = counts[zero + 1 if zero + 1 < len(counts) else zero - 1]
    levels = 2 ** (bits - 1) if symmetric else 2**bits

    # A bin is kept with its centre, the outermost with the outermost value: much may lie there, as behind a Clip.
    centers = np.clip((edges[:-1] + edges[1:]) / 2, *_range(*_seen(histogram), symmetric))

    def divergence(low: float, high: float) -> float:
        first, last = np.searchsorted(centers, low), np.searchsorted(centers, high, "right")
        return _divergence(counts, int(first), int(last), levels)

    return _search(histogram, symmetric, _BY_BIN, divergence)


def mse(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The clip with the least expected squared error, rounding and clipping together.

    The trade-off is that of Banner et al. (Post-Training 4-bit Quantization, NeurIPS 2019), over the values seen
    instead of an assumed distribution. Inside a bin they count as spread evenly, and the error is integrated there.
    """
    edges, counts = histogram.edges, histogram.counts

    def error(low: float, high: float) -> float:
        return squared_error(edges, counts, grid_of(low, high, bits, symmetric))

    return _search(histogram, symmetric, _BY_RATIO, error)


def moving_average(observed: Observed, bits: int, symmetric: bool) -> tuple[float, float]:
    """The exponential moving average of the batches' ends (Jacob et al., CVPR 2018, section 3.1); see `MovingRange`.

    The only one that depends on the batches: on how large they are, and slightly on their order.
    """
    low, high = _seen(observed)
    return _range(max(observed.average.low, low), min(observed.average.high, high), symmetric)


def auto(observed: Observed, bits: int, symmetric: bool) -> tuple[float, float]:
    """The range of the one other rule that reconstructs the tensor best on the grid of these bits."""
    return choose(observed, bits, symmetric, lambda low, high: [grid_of(low, high, bits, symmetric)])[1]


CALIBRATORS: dict[str, Calibrator] = {
    "min-max": min_max,
    "moving-average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "auto": auto,
}


def choose(observed: Observed, bits: int, symmetric: bool, grids: Grids) -> tuple[str, tuple[float, float]]:
    """The rule whose range has the least squared error in the mean of all grids it may be written in.

    `mse` alone would not do: it is the best clip for its own grid, while files are written in others. Unsigned integers
    with zero point 0 reach twice as far as the range, and an asymmetric tensor has twice the levels.

    Returns:
        The rule's name in the table, and its range.
    """
    edges, counts = observed.edges, observed.counts
    found = {name: rule(observed, bits, symmetric) for name, rule in CALIBRATORS.items() if rule is not auto}

    def error(name: str) -> float:
        return statistics.fmean(squared_error(edges, counts, grid) for grid in grids(*found[name]))

    best = min(found, key=error)
    return best, found[best]


def _search(histogram: Histogram, symmetric: bool, shares: np.ndarray, loss: Loss) -> tuple[float, float]:
    """The range of least loss within the one seen; of equals the widest.

    Without symmetry each end is then searched with the other fixed, so that an outlier on one side does not move the
    other: from the whole range and from the best of those drawn in evenly, for either alone may end in a poor valley.
    """
    seen = _seen(histogram)
    low, high = _range(*seen, symmetric)
    if seen[1] - seen[0] < _SMALLEST:
        return low, high
    share = _best_share(shares, lambda share: loss(low * share, high * share))
    best = low * share, high * share
    if symmetric or low == 0 or high == 0:
        return best
    for left, right in ((low, high), best):
        for _ in range(_ROUNDS):
            right = _best_end(high, shares, functools.partial(loss, left))
            left = _best_end(low, shares, functools.partial(_swapped, loss, right))
        best = min(best, (left, right), key=lambda ends: loss(*ends))
    return best


def _swapped(loss: Loss, high: float, low: float) -> float:
    return loss(low, high)


def _best_end(end: float, shares: np.ndarray, loss: Callable[[float], float]) -> float:
    return end * _best_share(shares, lambda share: loss(end * share))


def _best_share(shares: np.ndarray, loss: Callable[[float], float]) -> float:
    """The share of least loss among `shares`, which fall from 1, then between the neighbours of the best of them."""
    best = int(np.argmin([loss(share) for share in shares.tolist()]))
    fine = np.linspace(shares[max(best - 1, 0)], shares[min(best + 1, len(shares) - 1)], _FINE)
    return float(min([float(shares[best]), *fine.tolist()], key=loss))


def _divergence(counts: np.ndarray, first: int, last: int, levels: int) -> float:
    """KL(P || Q) in nats when the bins from `first` to before `last` are kept."""
    seen = counts[first:last].astype(np.float64)
    if len(seen) < levels or not seen.any():
        return math.inf
    reference = seen.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    level = np.arange(len(seen)) * levels // len(seen)
    filled = seen > 0
    sums, sizes = np.bincount(level, weights=seen), np.bincount(level, weights=filled)
    spread = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    p, q = reference / reference.sum(), spread / spread.sum()
    some = p > 0
    # Q may be empty where clipped values were put: not infinitely bad, or no outlier behind a gap were ever clipped.
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))).sum())


def _seen(histogram: Histogram) -> tuple[float, float]:
    """What was seen, with zero, which is always exact in INT8."""
    if histogram.count == 0:
        raise DataError("saw no values; no range can be found")
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def _range(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    if high - low < _SMALLEST:
        return 0.0, _ANYTHING
    if symmetric and low < 0:
        bound = max(-low, high)
        return -bound, bound
    return low, high


def _distribution(histogram: Histogram, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Edges and counts; symmetric: of absolute values. The bins of both signs lie alike, so that they can be added."""
    _seen(histogram)
    edges, counts = histogram.edges, histogram.counts
    if not symmetric:
        return edges, counts
    zero = int(np.searchsorted(edges, 0.0))
    positive, negative = counts[zero:], counts[:zero][::-1]
    total = np.zeros(max(len(positive), len(negative)), np.int64)
    total[: len(positive)] += positive
    total[: len(negative)] += negative
    return np.arange(len(total) + 1) * (edges[1] - edges[0]), total


def _quantile(edges: np.ndarray, counts: np.ndarray, share: float) -> float:
    """The value that `share` of all lie below, those of one bin spread evenly over it."""
    below = np.cumsum(counts)
    target = share * below[-1]
    index = int(np.searchsorted(below, target))
    inside = 1 - (below[index] - target) / max(counts[index], 1)
    return float(edges[index] + inside * (edges[index + 1] - edges[index]))
