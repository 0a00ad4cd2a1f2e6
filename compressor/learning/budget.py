"""How long a training lasts: so many epochs, or so many minutes. The learning rate follows the share that is done."""

import time


class Epochs:
    """Until so many epochs are done: the same weights, however fast the machine.

    Args:
        epochs: how many.
        batches: in each.
        accumulation: batches per optimizer step.
    """

    def __init__(self, epochs: int, batches: int, accumulation: int) -> None:
        self._epochs, self._batches = epochs, batches
        self._steps = max(1, epochs * batches // accumulation)
        self.spent = 0.0

    def left(self, epoch: int) -> bool:
        """Whether there is more to do in epoch number `epoch` (from 0)."""
        return epoch < self._epochs

    def begun(self, epoch: int) -> float:
        """The share that is done when epoch number `epoch` begins."""
        return epoch / self._epochs

    def done(self, step: int) -> float:
        """The share that is done after so many optimizer steps."""
        return min(1.0, step / self._steps)

    def warm(self, step: int, warmup: float) -> float:
        """Factor of a linear warm-up over the share `warmup`, 1 at its end."""
        return min(1.0, (step + 1) / max(1, round(warmup * self._steps)))

    def progress(self, epoch: int, batch: int) -> tuple[int, int, str]:
        """Done, total, and words for where it is."""
        return epoch * self._batches + batch, self._epochs * self._batches, f"epoch {epoch + 1}/{self._epochs}"


class Minutes:
    """Until the time is up, within an epoch too. What a killed process trained counts, as of its last checkpoint.

    How many steps that makes depends on the machine and its load: no second run gives the same weights.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.spent = 0.0

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self._before + time.monotonic() - self._started

    @spent.setter
    def spent(self, seconds: float) -> None:
        self._before, self._started = seconds, time.monotonic()

    def left(self, epoch: int) -> bool:
        """See `Epochs`; the others too."""
        return self.spent < self._seconds

    def begun(self, epoch: int) -> float:
        return self.done(0)

    def done(self, step: int) -> float:
        return min(1.0, self.spent / self._seconds)

    def warm(self, step: int, warmup: float) -> float:
        return min(1.0, self.done(step) / warmup) if warmup else 1.0

    def progress(self, epoch: int, batch: int) -> tuple[int, int, str]:
        done = round(self.spent), max(1, round(self._seconds))
        return min(done), done[1], f"epoch {epoch + 1}, {self.spent / 60:.1f} of {self._seconds / 60:g} minutes,"


Budget = Epochs | Minutes
