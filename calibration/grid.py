"""The integers that a range is written in, and what they make of a tensor."""

import dataclasses

import numpy as np

from .histogram import Histogram


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values `scale * level`, with whole levels from `lowest` to `highest`."""

    scale: float
    lowest: int
    highest: int


def grid_of(low: float, high: float, bits: int, symmetric: bool) -> Grid:
    """The grid of a calibrator's range, see `calibrators.Calibrator`."""
    if symmetric:
        highest = 2 ** (bits - 1) - 1
        return Grid(high / highest, -highest if low < 0 else 0, highest)
    scale = (high - low) / (2**bits - 1)
    zero_point = round(-low / scale)
    return Grid(scale, -zero_point, 2**bits - 1 - zero_point)


def squared_error(edges: np.ndarray, counts: np.ndarray, grid: Grid) -> float:
    """Mean squared difference between a tensor and what is read back of it, rounding and clipping together.

    Inside a bin values count as spread evenly, and the error is integrated there.

    Args:
        edges: of a histogram's bins, all of one width, `(B + 1,)`.
        counts: values per bin, `(B,)`; at least one value.
    """
    scale = grid.scale
    level = np.clip(np.rint(edges / scale), grid.lowest, grid.highest)
    rest = edges - level * scale
    # With q(t) the quantized t: the integral of (t - q(t)) ** 2 from 0 to each edge. A whole step holds
    # scale ** 3 / 12; what is left over, clipped or not, lies within one parabola.
    integral = level * (scale**3 / 12) + rest * rest * rest / 3  # a power is fourteen times slower
    return float(counts @ np.diff(integral)) / float(edges[1] - edges[0]) / float(counts.sum())


def clipped_share(histogram: Histogram, low: float, high: float) -> float:
    """Share of the values outside `low` to `high`; those of one bin count as spread evenly over it."""
    edges, total = histogram.edges, histogram.count
    edges[0], edges[-1] = max(edges[0], histogram.low), min(edges[-1], histogram.high)
    below = np.append(0, np.cumsum(histogram.counts))
    under = 0.0 if low <= histogram.low else float(np.interp(low, edges, below))
    over = 0.0 if high >= histogram.high else total - float(np.interp(high, edges, below))
    return (under + over) / total


def unused_share(histogram: Histogram, grid: Grid) -> float:
    """Share of the levels that stand for no value that was seen; where bins are wider than a step, at least that."""
    filled = histogram.counts > 0
    starts = np.maximum(histogram.edges[:-1], histogram.low)[filled]
    ends = np.minimum(histogram.edges[1:], histogram.high)[filled]
    first, last = (np.clip(np.rint(side / grid.scale), grid.lowest, grid.highest) for side in (starts, ends))
    change = np.zeros(grid.highest - grid.lowest + 2, np.int64)
    np.add.at(change, first.astype(np.int64) - grid.lowest, 1)
    np.add.at(change, last.astype(np.int64) - grid.lowest + 1, -1)
    return float((np.cumsum(change)[:-1] == 0).mean())
