"""A histogram of one tensor over a stream of batches: constant memory, the same whatever the order of the batches."""

import math

import numpy as np

from ..core.errors import DataError

_FINEST = -1022  # exponent of the smallest normal float64: no bin is narrower
_FLOAT32_EXPONENT = 126  # 2 ** this, and the numbers of bins that come of it, are float32
_CHUNK = 1 << 15  # values looked at together: what is made of them stays in the cache
_LARGEST = float(np.finfo(np.float32).max)


class Histogram:
    """Counts in bins of equal width, a power of two; bins begin at multiples of it, and zero is always inside.

    The width is the smallest with which `low`, zero and `high` lie within `limit` bins: a function of the range alone.
    A wider range never asks for a narrower one, so that the width only doubles, and then each new bin is exactly two
    old ones. Hence the counts depend on the values alone: not on their order, nor on how they were split into batches
    or over histograms that were merged.

    Args:
        limit: the most bins kept; at least 2, one for each sign.

    >>> histogram = Histogram(limit=4)
    >>> histogram.update(np.array([0.1, 0.2, 0.7]))
    (0.1, 0.7)
    >>> histogram.update(np.array([[1.6]]))
    (1.6, 1.6)
    >>> histogram.edges.tolist(), histogram.counts.tolist()
    ([0.0, 0.5, 1.0, 1.5, 2.0], [2, 1, 0, 1])
    """

    def __init__(self, limit: int = 4096) -> None:
        if limit < 2:
            raise ValueError(f"limit must be at least 2 (one bin for each sign), got {limit}")
        self._limit = limit
        self._exponent = _FINEST  # width = 2 ** exponent
        self._first = 0  # the first bin begins at first * width
        self._counts = np.zeros(0, np.int64)
        self._low, self._high = math.inf, -math.inf

    @property
    def low(self) -> float:
        """Smallest value seen, exactly; infinity before there was one."""
        return self._low

    @property
    def high(self) -> float:
        """Largest value seen, exactly; minus infinity before there was one."""
        return self._high

    @property
    def count(self) -> int:
        """Values seen."""
        return int(self._counts.sum())

    @property
    def counts(self) -> np.ndarray:
        """Values per bin, int64 `(B,)`."""
        return self._counts.copy()

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins, float64 `(B + 1,)`; a bin holds `edges[i] <= x < edges[i + 1]`."""
        return (self._first + np.arange(len(self._counts) + 1)) * math.ldexp(1.0, self._exponent)

    def update(self, array: np.ndarray) -> tuple[float, float] | None:
        """Add values of any shape and real type; nothing is added where they are refused.

        Returns:
            The smallest and the largest of them; None: there were none.

        Raises:
            DataError: NaN, infinity, or a value that float32, which the runtimes compute in, does not hold.
        """
        flat = np.asarray(array).reshape(-1)
        if not flat.size:
            return None
        low, high = float(flat.min()), float(flat.max())  # NaN where there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError("holds NaN or infinity; no range can be found")
        if max(-low, high) > _LARGEST:
            raise DataError(f"holds {max(low, high, key=abs):g}, more than float32 can; no range can be found")
        self._widen(low, high)
        for start in range(0, flat.size, _CHUNK):
            self._add(flat[start : start + _CHUNK])
        return low, high

    def merge(self, other: "Histogram") -> None:
        """Add everything that another histogram has seen; where it has fewer, wider bins, they become those of this."""
        first, exponent, counts = other._first, other._exponent, other._counts.copy()  # it may be this very one
        if len(counts):
            self._widen(other.low, other.high, exponent)
            np.add.at(self._counts, _coarser(first, len(counts), self._exponent - exponent) - self._first, counts)

    def _add(self, values: np.ndarray) -> None:
        """Count values that lie within the range."""
        # A float32 times a power of two from 1 on is exact. So is a smaller one in float64, but of a float64.
        exact = values.dtype == np.float32 and -_FLOAT32_EXPONENT <= self._exponent <= 0
        values = values if exact else values.astype(np.float64)
        indices = values * values.dtype.type(math.ldexp(1.0, -self._exponent))
        np.floor(indices, out=indices)
        if not exact:
            np.minimum(indices, -1.0, out=indices, where=values < 0)  # a subnormal value may be lost, and its sign
        indices -= self._first  # within the bins: an integer that both types hold
        self._counts += np.bincount(indices.astype(np.intp), minlength=len(self._counts))

    def _widen(self, low: float, high: float, finest: int = _FINEST) -> None:
        """Take `low` to `high` into the range, with what was counted so far in the bins this asks for."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        exponent, first, last = _bins(self._low, self._high, self._limit, max(finest, self._exponent))
        counts = np.zeros(last - first + 1, np.int64)
        np.add.at(counts, _coarser(self._first, len(self._counts), exponent - self._exponent) - first, self._counts)
        self._exponent, self._first, self._counts = exponent, first, counts


def _bins(low: float, high: float, limit: int, finest: int) -> tuple[int, int, int]:
    """Exponent of the smallest width, from `2 ** finest` on, with which `low`, zero and `high` lie within `limit` bins.

    Returns:
        It, the first bin and the last.
    """
    extent = max(-low, high)
    # Half of this width would not do: the extent alone would fill 2 ** limit.bit_length() > limit bins.
    exponent = finest if extent == 0 else max(finest, math.frexp(extent)[1] - limit.bit_length())
    while True:
        first = min(math.floor(math.ldexp(low, -exponent)), -1) if low < 0 else 0
        last = max(math.floor(math.ldexp(high, -exponent)), 0)
        if last - first < limit:
            return exponent, first, last
        exponent += 1


def _coarser(first: int, size: int, steps: int) -> np.ndarray:
    """The bins that `size` bins from `first` on fall into when the width doubles `steps` times, int64 `(size,)`."""
    steps = min(steps, 62)  # shifts as wide as the type are left to the platform; these already give 0 or -1
    indices: np.ndarray = (first + np.arange(size)) >> steps
    return indices
