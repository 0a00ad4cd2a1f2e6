"""From a histogram to the range that INT8 should cover. Pure functions of one histogram."""

from collections.abc import Callable

import numpy as np

from ..core.errors import DataError
from .histogram import Histogram

# (histogram, bits, symmetric) -> (low, high), low <= 0 <= high, low < high. Symmetric: (-m, m), or (0, m) where nothing
# negative was seen; the scale is then m / (2 ** (bits - 1) - 1). Zero everywhere: (0, 1e-6). Nothing seen: DataError.
Calibrator = Callable[[Histogram, int, bool], tuple[float, float]]

_CANDIDATES, _NARROWEST = 160, 1 / 256  # clips tried: from everything down to this share of it, evenly in the logarithm
_ROUNDS = 2  # of searching one end with the other fixed
_PERCENTILE = 99.99
_SMALLEST = 1e-30  # a range below this has no scale among normal float32 numbers
_NOTHING = 1e-6  # range given to a tensor that is zero everywhere: any will do, but a scale must be positive


def min_max(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """Everything that was seen."""
    return _range(histogram.low, histogram.high, symmetric)


def percentile(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """What is left when the outermost 0.01 % are cut (symmetric: by absolute value; else half on each side)."""
    if symmetric:
        centers, counts = _absolute(histogram)
        bound = _quantile(centers, counts, _PERCENTILE / 100)
        return _range(max(histogram.low, -bound), min(histogram.high, bound), True)
    centers, counts = _centers(histogram), histogram.counts
    tail = (1 - _PERCENTILE / 100) / 2
    low, high = (_quantile(centers, counts, share) for share in (tail, 1 - tail))
    return _range(max(histogram.low, low), min(histogram.high, high), False)


def mse(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The clip with the least expected squared error, rounding and clipping together.

    The trade-off is that of Banner et al. (Post-Training 4-bit Quantization, NeurIPS 2019), over the values seen
    instead of an assumed distribution.
    """

    def error(low: float, high: float) -> float:
        return _squared_error(histogram, low, high, bits, symmetric)

    return _best(histogram, symmetric, error)


def entropy(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The clip whose quantized distribution loses least information: least KL(P || Q) (Migacz, GTC 2017).

    P is the distribution with everything clipped counted in its last bins, Q the same in `2 ** bits` levels, spread
    again over the bins that P fills. The bin at zero counts as its neighbour does: after a Relu it would outweigh all.
    """
    levels = 2 ** (bits - 1) if symmetric else 2**bits

    def divergence(low: float, high: float) -> float:
        return _divergence(histogram, low, high, levels, symmetric)

    return _best(histogram, symmetric, divergence)


CALIBRATORS: dict[str, Calibrator] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _best(histogram: Histogram, symmetric: bool, loss: Callable[[float, float], float]) -> tuple[float, float]:
    """The candidate clip of least loss; of equals the widest.

    Without symmetry the two ends are searched in turn, so that an outlier on one side does not move the other.
    """
    shares = np.geomspace(1.0, _NARROWEST, _CANDIDATES).tolist()
    low, high = _range(histogram.low, histogram.high, symmetric)
    if symmetric:
        return _least([(low * share, high * share) for share in shares], loss)
    lows, highs = [low * share for share in shares], [high * share for share in shares]
    for _ in range(_ROUNDS):
        low, high = _least([(low, candidate) for candidate in highs], loss)
        low, high = _least([(candidate, high) for candidate in lows], loss)
    return low, high


def _least(candidates: list[tuple[float, float]], loss: Callable[[float, float], float]) -> tuple[float, float]:
    distinct = list(dict.fromkeys(candidates))  # a side without values has but one
    losses = [loss(*candidate) for candidate in distinct]
    return distinct[int(np.argmin(losses))]


def _squared_error(histogram: Histogram, low: float, high: float, bits: int, symmetric: bool) -> float:
    centers, counts = _centers(histogram), histogram.counts
    scale = max(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
    zero = 0.0 if symmetric else np.rint(-low / scale) * scale
    kept = np.clip(centers, low, high)
    width = float(histogram.edges[1] - histogram.edges[0])
    if width < scale:
        rounded = np.rint((kept + zero) / scale) * scale - zero
        return float((counts * (centers - rounded) ** 2).sum())
    # Bins as wide as a step do not show rounding at their centres; it is uniform inside them.
    return float((counts * (centers - kept) ** 2).sum() + counts.sum() * scale**2 / 12)


def _divergence(histogram: Histogram, low: float, high: float, levels: int, symmetric: bool) -> float:
    centers, counts = _absolute(histogram) if symmetric else (_centers(histogram), histogram.counts.copy())
    zero = int(np.argmin(np.abs(centers)))
    counts[zero] = counts[min(zero + 1, len(counts) - 1)]
    inside = (centers <= max(-low, high)) & (centers >= (0.0 if symmetric else low))
    seen = counts[inside].astype(np.float64)
    if not seen.sum():
        return float("inf")
    reference = seen.copy()
    reference[-1] += counts[centers > centers[inside][-1]].sum()
    reference[0] += counts[centers < centers[inside][0]].sum()
    level = (np.arange(len(seen)) * levels) // len(seen)
    filled = seen > 0
    sums = np.bincount(level, weights=seen, minlength=levels)
    sizes = np.bincount(level, weights=filled, minlength=levels)
    candidate = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    p, q = reference / reference.sum(), candidate / candidate.sum()
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-12))).sum())


def _range(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    if low == np.inf:
        raise DataError("saw no values; no range can be found")
    low, high = min(low, 0.0), max(high, 0.0)
    if not low - high < -_SMALLEST or not np.isfinite(high - low):
        return 0.0, _NOTHING
    if symmetric and low < 0:
        bound = max(-low, high)
        return -bound, bound
    return low, high


def _centers(histogram: Histogram) -> np.ndarray:
    edges = histogram.edges
    centers: np.ndarray = (edges[:-1] + edges[1:]) / 2
    return centers


def _absolute(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Centres and counts of absolute values; the bins of both signs lie alike, so that they can be added."""
    edges, counts = histogram.edges, histogram.counts
    zero = int(np.searchsorted(edges, 0.0))
    positive, negative = counts[zero:], counts[:zero][::-1]
    size = max(len(positive), len(negative))
    total = np.zeros(size, np.int64)
    total[: len(positive)] += positive
    total[: len(negative)] += negative
    width = edges[1] - edges[0]
    return (np.arange(size) + 0.5) * width, total


def _quantile(centers: np.ndarray, counts: np.ndarray, share: float) -> float:
    cumulative = np.cumsum(counts) / max(counts.sum(), 1)
    return float(centers[min(int(np.searchsorted(cumulative, share)), len(centers) - 1)])
