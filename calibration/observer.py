"""What is kept of one tensor while batches stream by: memory does not depend on how many there are."""

import copy

import numpy as np

from .histogram import Histogram

_DECAY = 0.99  # of a batch's weight with each one after it


class MovingRange:
    """The exponential moving average of the batches' smallest and largest values, zero always inside.

    Weights fall by 0.99 from each batch to the one before it and add up to one (the correction of Kingma & Ba, Adam,
    ICLR 2015, section 3): without that, few batches would leave the first one nearly all of the weight.
    """

    def __init__(self) -> None:
        self._total = 0.0  # 1 + decay + decay ** 2 + ..., one term for each batch
        self.low, self.high = 0.0, 0.0

    def add(self, low: float, high: float) -> None:
        """The ends of the next batch."""
        self._total = self._total * _DECAY + 1
        self.low += (min(low, 0.0) - self.low) / self._total
        self.high += (max(high, 0.0) - self.high) / self._total


class Observed(Histogram):
    """All values of a tensor, and besides them what depends on the order of the batches and on how they were cut."""

    def __init__(self) -> None:
        super().__init__()
        self.average = MovingRange()
        self.halves: tuple[Observed, Observed] | None = None  # every other batch; None: there was one batch only

    def update(self, array: np.ndarray) -> tuple[float, float] | None:
        """See `Histogram.update`; one call is one batch."""
        ends = super().update(array)
        if ends is not None:
            self.average.add(*ends)
        return ends


class Observer:
    """Batches go to two halves in turn, so that the ranges of both say how far the samples settle them.

    Every value is counted once: the whole is the two halves added up, exactly.
    """

    def __init__(self) -> None:
        self._halves = Observed(), Observed()
        self._average = MovingRange()
        self._batches = 0

    def update(self, array: np.ndarray) -> None:
        """See `Histogram.update`."""
        ends = self._halves[self._batches % 2].update(array)
        if ends is not None:
            self._average.add(*ends)
            self._batches += 1

    def observed(self) -> Observed:
        """What was seen so far."""
        whole = Observed()
        for half in self._halves:
            whole.merge(half)
        whole.average = copy.copy(self._average)
        whole.halves = copy.deepcopy(self._halves) if self._batches > 1 else None
        return whole
