"""A metric's scores, run by run: outputs are held only for a metric that has to see all samples at once."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...benches.metrics import metrics
from ...core.errors import DataError
from ...core.task import Metric
from ...core.values import Arrays


class StreamedScores:
    """Scores of one file.

    Args:
        metric: names the output that it reads.
        labels: of the rows of all runs, one run after the other.
    """

    def __init__(self, metric: Metric, labels: np.ndarray) -> None:
        self._metric, self._labels = metric, labels
        self._parts: list[np.ndarray] = []
        self._held: list[Arrays] = []
        self._rows, self._row, self._fits = 0, (-1,), metric.samplewise

    def watching(self, outputs: Iterable[Arrays]) -> Iterator[Arrays]:
        """The same outputs, scored on their way."""
        name = str(self._metric.output)
        for each in outputs:
            if not self._metric.samplewise:
                self._held.append({name: each[name]} if name in each else each)
            elif self._fits:
                self._fits = self._add(each.get(name, np.array(0)))
            yield each

    def found(self, outputs: Iterable[Arrays]) -> np.ndarray:
        """Per-sample scores `(N,)` or `(N, K)`, once all runs were seen.

        Args:
            outputs: of all runs, asked for where something does not fit: what is said then is said of all samples.

        Raises:
            DataError: see `metrics.scores_of`; the output has no rows, or not of one shape in all runs.
        """
        if self._fits and self._rows == len(self._labels):
            scores = np.concatenate(self._parts)
            metrics.check_scores(self._metric, scores)
            return scores
        return _of_all(self._metric, self._held or list(outputs), self._labels)

    def _add(self, output: np.ndarray) -> bool:
        """Whether the rows of one run could be scored."""
        if output.ndim == 0 or (self._parts and output.shape[1:] != self._row):
            return False
        if not len(output):
            return True
        labels, self._row = self._labels[self._rows : self._rows + len(output)], output.shape[1:]
        self._rows += len(output)
        try:
            metrics.check_outputs(self._metric, output, labels)
        except DataError:
            return False
        self._parts.append(np.asarray(self._metric.scores(output, labels)))
        return len(self._parts[-1]) == len(output)


def joined(outputs: Sequence[Arrays], name: str) -> np.ndarray:
    """One output as one array, the runs one after the other.

    Raises:
        DataError: it has no rows, or not of one shape in all runs.
    """
    arrays = [each[name] for each in outputs]
    if not all(array.ndim > 0 and array.shape[1:] == arrays[0].shape[1:] for array in arrays):
        raise DataError(f"labels are for rows, and output '{name}' of the model has no rows of one shape in all runs")
    return np.concatenate(arrays)


def _of_all(metric: Metric, outputs: Sequence[Arrays], labels: np.ndarray) -> np.ndarray:
    whole = {name: joined(outputs, name) for name in outputs[0] if name == metric.output} or outputs[0]
    return metrics.scores_of(metric, whole, labels)  # where no output has that name it says so
