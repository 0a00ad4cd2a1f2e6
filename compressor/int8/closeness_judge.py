"""Is a changed file still good enough? Its outputs on real runs against the original's, or the metric they give."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...benches.metrics import accuracy, closeness, metrics
from ...benches.metrics.closeness import Closeness
from ...benches.report.int8_report import Quality
from ...benches.timing import intervals
from ...core.errors import DataError
from ...core.task import Metric
from ...core.values import Arrays, Interval, Session
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from .kept_answers import KeptAnswers
from .runs import Runs
from .streamed_scores import StreamedScores

MIN_SNR_DB = 20.0  # outputs a tenth of their size away
_SPARE_DB, _SPARE = 1.5, 0.75  # held back while choosing
Load = Callable[[Path, int], Session]  # (path, threads)
DROP = 0.01  # of a metric that is a share, where nothing else is asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promise:
    """What must hold: a loss of at most `limit` where there is one, a signal-to-noise ratio of every other output."""

    metric: Metric | None = None
    max_drop: float | None = None  # of the metric; without labels: share of answers that may change
    min_snr_db: float = MIN_SNR_DB

    @property
    def limit(self) -> float | None:
        """The most that may be lost; None: the signal-to-noise ratio counts."""
        points = self.metric is not None and self.metric.kind == "proportion"
        return DROP if points and self.max_drop is None else self.max_drop


class Judge:
    """Holds files against what the original said on some runs; of outputs one run's are in memory at a time.

    Those that a metric has to see together are held, see `Metric.samplewise`.

    Args:
        original: the file that others are held against.
        runs: what both are fed.
        promise: what must hold.
        load: opens files; a target's `stand_in`.
        confidence: of each bound.
        folder: where the original's outputs are kept meanwhile; None: with other temporary files.
        load_original: opens the original, where that is not `load`.
    """

    def __init__(
        self,
        original: Path,
        runs: Runs,
        promise: Promise,
        load: Load = OnnxRuntimeSession,
        confidence: float = 0.95,
        folder: Path | None = None,
        load_original: Load | None = None,
    ) -> None:
        self._runs, self._promise, self._load, self._confidence = runs, promise, load, confidence
        self._original = KeptAnswers(lambda: run(original, runs.feeds, load_original or load), folder)
        if promise.metric is None and promise.max_drop is not None:
            _check_answers(self._original)

    def quality(self, path: Path) -> Quality:
        """Run a file on the same runs."""
        metric, labels = self._promise.metric, self._runs.labels
        if metric is not None and labels is not None:
            return self._scored(path, metric, labels)
        found = closeness.compare(self._original, self._outputs(path))
        base = Quality(outputs=found, snr_db=closeness.worst_snr(found), drop=None)
        if self._promise.limit is not None:
            return dataclasses.replace(base, drop=_changed_answers(found, self._confidence))
        return base

    def _scored(self, path: Path, metric: Metric, labels: np.ndarray) -> Quality:
        read = metric.output or next(iter(next(iter(self._original))))
        metric = metrics.with_output(metric, read)
        first, second = StreamedScores(metric, labels), StreamedScores(metric, labels)
        found = closeness.compare(first.watching(self._original), second.watching(self._outputs(path)))
        original, changed = first.found(self._original), second.found(self._outputs(path))
        unread = [each for each in found if each.output != read]
        return Quality(
            outputs=found,
            snr_db=closeness.worst_snr(found),
            drop=accuracy.paired_drop(metric, original, changed, self._confidence),
            original=metrics.value(metric, original),
            changed=metrics.value(metric, changed),
            unread_db=closeness.worst_snr(unread) if unread else None,
        )

    def _outputs(self, path: Path) -> Iterator[dict[str, np.ndarray]]:
        return run(path, self._runs.feeds, self._load)

    def keeps(self, quality: Quality, spare: bool = False) -> bool:
        """Whether the promise holds, by the estimates.

        Args:
            spare: hold some back, because what is fitted to these runs will do a little worse on others.
        """
        limit, least = self._promise.limit, self._promise.min_snr_db + (_SPARE_DB if spare else 0)
        if limit is None:
            return quality.snr_db >= least
        assert quality.drop is not None
        others = quality.unread_db is None or quality.unread_db >= least
        return others and quality.drop.value <= limit * (_SPARE if spare else 1)

    def proves(self, quality: Quality) -> bool:
        """Whether it holds by the bound too, as far as a loss is what is limited."""
        limit = self._promise.limit
        return limit is None or (quality.drop is not None and quality.drop.high <= limit)


def run(path: Path, feeds: Sequence[Arrays], load: Load = OnnxRuntimeSession) -> Iterator[dict[str, np.ndarray]]:
    """Outputs of a file, run by run."""
    session = load(path, 1)
    try:
        for feed in feeds:
            yield session.run(feed)
    finally:
        session.close()


def _changed_answers(found: Sequence[Closeness], confidence: float) -> Interval:
    """The largest share of changed answers among the outputs, with Wilson's interval."""
    worst = min((each for each in found if each.agreement is not None), key=lambda each: each.agreement or 0.0)
    changed = (1 - (worst.agreement or 0.0)) * worst.answers
    return intervals.wilson(changed, worst.answers, confidence)


def _check_answers(original: Iterable[Arrays]) -> None:
    if all(found.agreement is None for found in closeness.compare(original, original)):
        raise DataError(
            "--max-drop: the data has no labels, and no output of the model has answers to compare (their last axis "
            "holds one number); leave it out, and the outputs are kept close by their signal-to-noise ratio"
        )
