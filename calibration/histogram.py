"""A histogram of one tensor over a stream of batches: constant memory, the same whatever the order of the batches."""

import math

import numpy as np

from ..core.errors import DataError

_FINEST = -1022  # exponent of the smallest normal float64: no bin is narrower


class Histogram:
    """Counts in bins of equal width; the width is a power of two and bins begin at multiples of it.

    The width only ever doubles, by merging neighbours, and only when the range seen needs more than `limit` bins. A
    bin of the coarser width is exactly two of the finer one, so that the result depends on the values alone: not on
    their order, not on how they were split into batches.

    Args:
        limit: the most bins kept.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._exponent: int | None = None  # width = 2 ** exponent; None: nothing but zeros was seen
        self._first = 0  # index of the first bin: it begins at first * width
        self._counts = np.zeros(0, np.int64)
        self._zeros = 0
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
        return (first + np.arange(len(counts) + 1)) * self._width()

    def update(self, values: np.ndarray) -> None:
        """Add values of any shape.

        Raises:
            DataError: NaN or infinity among them.
        """
        flat = np.asarray(values, np.float64).reshape(-1)
        if not flat.size:
            return
        if not bool(np.isfinite(flat).all()):
            raise DataError("holds NaN or infinity; no range can be found")
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        others = flat[flat != 0]
        self._zeros += flat.size - others.size
        if others.size:
            self._fit(float(others.min()), float(others.max()))
            indices = np.floor(np.ldexp(others, -self._power())).astype(np.int64) - self._first
            self._counts += np.bincount(indices, minlength=len(self._counts))

    def merge(self, other: "Histogram") -> None:
        """Add everything another histogram has seen."""
        self._zeros += other._zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other._exponent is None:
            return
        last = other._first + len(other._counts) - 1
        self._fit(math.ldexp(other._first, other._exponent), math.ldexp(last, other._exponent), other._exponent)
        indices = ((other._first + np.arange(len(other._counts))) >> (self._power() - other._exponent)) - self._first
        np.add.at(self._counts, indices, other._counts)

    def _fit(self, low: float, high: float, finest: int | None = None) -> None:
        """Widen the bins until the bins of `low`, `high` and all seen before number at most `limit`."""
        if self._exponent is None:
            # Fine enough that no later range could have asked for less: zero is always inside.
            extent = max(abs(low), abs(high))
            self._exponent = max(_FINEST, math.frexp(extent)[1] - self._limit.bit_length(), finest or _FINEST)
            self._first = math.floor(math.ldexp(low, -self._exponent))
        elif finest is not None:
            self._coarsen(finest)
        while True:
            first, last = (math.floor(math.ldexp(edge, -self._power())) for edge in (low, high))
            if len(self._counts):
                first, last = min(first, self._first), max(last, self._first + len(self._counts) - 1)
            first, last = min(first, 0), max(last, 0)
            if last - first < self._limit:
                break
            self._coarsen(self._power() + 1)
        grown = np.zeros(last - first + 1, np.int64)
        grown[self._first - first : self._first - first + len(self._counts)] = self._counts
        self._first, self._counts = first, grown

    def _coarsen(self, exponent: int) -> None:
        steps = exponent - self._power()
        if steps <= 0:
            return
        if len(self._counts):
            indices = (self._first + np.arange(len(self._counts))) >> steps
            first = int(indices[0])
            merged = np.zeros(int(indices[-1]) - first + 1, np.int64)
            np.add.at(merged, indices - first, self._counts)
            self._first, self._counts = first, merged
        else:
            self._first >>= steps
        self._exponent = exponent

    def _power(self) -> int:
        assert self._exponent is not None
        return self._exponent

    def _width(self) -> float:
        return 1.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    def _dense(self) -> tuple[int, np.ndarray]:
        """First bin and counts, the zeros in theirs."""
        if self._exponent is None:
            return 0, np.array([self._zeros], np.int64)
        counts = self._counts.copy()
        counts[-self._first] += self._zeros
        return self._first, counts
