"""A histogram of one tensor over a stream of batches: constant memory, the same whatever the order of the batches."""

import math

import numpy as np

from ..core.errors import DataError

_FINEST = -1022  # exponent of the smallest normal float64: no bin is narrower
_CHUNK = 1 << 16  # values looked at together: what is made of them stays in the cache


class Histogram:
    """Counts in bins of equal width; the width is a power of two and bins begin at multiples of it.

    The width only ever doubles, by merging neighbours, and only when the range seen needs more than `limit` bins. A
    bin of the coarser width is exactly two of the finer one, so that the result depends on the values alone: not on
    their order, not on how they were split into batches.

    Args:
        limit: the most bins kept; at least 2.

    >>> histogram = Histogram(limit=4)
    >>> histogram.update(np.array([0.1, 0.2, 0.7]))
    >>> histogram.update(np.array([[1.6]]))
    >>> histogram.edges.tolist(), histogram.counts.tolist()
    ([0.0, 0.5, 1.0, 1.5, 2.0], [2, 1, 0, 1])
    """

    def __init__(self, limit: int = 4096) -> None:
        if limit < 2:
            raise ValueError(f"limit must be at least 2 (one bin for each sign), got {limit}")
        self._limit = limit
        self._exponent: int | None = None  # width = 2 ** exponent; None: nothing but zeros was seen
        self._first = 0  # index of the first bin: it begins at first * width
        self._counts = np.zeros(0, np.int64)
        self._zeros = 0  # counted apart: they say nothing about the width
        self.low = math.inf  # smallest value seen
        self.high = -math.inf  # largest value seen

    @property
    def count(self) -> int:
        """Values seen."""
        return self._zeros + int(self._counts.sum())

    @property
    def counts(self) -> np.ndarray:
        """Values per bin, int64 `(B,)`."""
        return self._dense()[1]

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins, float64 `(B + 1,)`; a bin holds `edge[i] <= x < edge[i + 1]`."""
        first, counts = self._dense()
        width = 1.0 if self._exponent is None else math.ldexp(1.0, self._exponent)
        return (first + np.arange(len(counts) + 1)) * width

    def update(self, values: np.ndarray) -> None:
        """Add values of any shape.

        Raises:
            DataError: NaN or infinity among them.
        """
        flat = np.asarray(values).reshape(-1)
        if not flat.size:
            return
        if not bool(np.isfinite(flat).all()):
            raise DataError("holds NaN or infinity; no range can be found")
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        for start in range(0, flat.size, _CHUNK):
            self._add(flat[start : start + _CHUNK].astype(np.float64))

    def _add(self, values: np.ndarray) -> None:
        others = values[values != 0]
        self._zeros += values.size - others.size
        if others.size:
            indices = np.floor(others * math.ldexp(1.0, -self._fit()))
            indices[(indices == 0) & (others < 0)] = -1  # scaling has lost a subnormal value
            self._counts += np.bincount(indices.astype(np.int64) - self._first, minlength=len(self._counts))

    def merge(self, other: "Histogram") -> None:
        """Add everything another histogram has seen."""
        self._zeros += other._zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other._exponent is not None:
            first, counts, exponent = other._first, other._counts.copy(), other._exponent
            indices = ((first + np.arange(len(counts))) >> (self._fit(exponent) - exponent)) - self._first
            np.add.at(self._counts, indices, counts)

    def _fit(self, finest: int = _FINEST) -> int:
        """Make room for `low` to `high`, zero among them, in bins no narrower than `2 ** finest`.

        Returns:
            The exponent of the width: the smallest with which they number at most `limit`.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        # With this width the larger side alone takes `limit` bins: never wider than what the loop would come to.
        exponent = max(finest, math.frexp(max(-low, high))[1] - self._limit.bit_length())
        if self._exponent is not None:
            exponent = max(exponent, self._exponent)
        first, last = _indices(low, high, exponent)
        while last - first >= self._limit:
            exponent += 1
            first, last = _indices(low, high, exponent)
        grown = np.zeros(last - first + 1, np.int64)
        if self._exponent is not None:
            indices = (self._first + np.arange(len(self._counts))) >> (exponent - self._exponent)
            np.add.at(grown, indices - first, self._counts)
        self._exponent, self._first, self._counts = exponent, first, grown
        return exponent

    def _dense(self) -> tuple[int, np.ndarray]:
        """First bin and counts, the zeros in theirs."""
        if self._exponent is None:
            return 0, np.array([self._zeros], np.int64)
        counts = self._counts.copy()
        counts[-self._first] += self._zeros
        return self._first, counts


def _indices(low: float, high: float, exponent: int) -> tuple[int, int]:
    """Bins of `low <= 0` and `high >= 0` at width `2 ** exponent`."""
    first = min(math.floor(math.ldexp(low, -exponent)), -1) if low < 0 else 0
    return first, math.floor(math.ldexp(high, -exponent))
