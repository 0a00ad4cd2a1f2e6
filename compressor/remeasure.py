"""A finished run measured anew in its own runtime: what differs from its report beyond the intervals of both."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..benches.gates.finished import under
from ..benches.gates.judge import judge
from ..benches.gates.last_release import MARGINS, other_machine
from ..benches.metrics import accuracy, metrics
from ..benches.report import report_words, words
from ..benches.report.report import BatchLatency, Report, batch_latency
from ..core.limits import LimitResult
from ..core.task import Metric
from ..core.values import Interval
from ..exporters.targets.targets import TARGETS
from . import measuring, predictions
from .evaluation import task_metrics
from .measuring import Costs
from .opened_run import Opened, open_run
from .progress import Progress

# Limits on what is measured, whose interval is kept -> how far beyond both intervals a figure may be and only be noted.
# None: however far, for absolute times are no paired measurement; memory may be as far off as a gate lets it be.
_STORED = {
    "latency_ms": None,
    "peak_memory_ratio": MARGINS["peak_memory"],
    "peak_memory_bytes": MARGINS["peak_memory"],
}
# Two sessions of the same files may be further apart than the restarts of either show: of one small file 2.7 % beyond
# both intervals was the most in 703 pairs. What a gate lets pass against the last release stops nothing here either.
_BETWEEN_SESSIONS = MARGINS["speedup"] or 0.0
# Chosen, not measured: between two days load, clocks and placement of memory move absolute times.
_BETWEEN_DAYS = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Again:
    """One figure, in the report and now."""

    what: str
    status: Literal["same", "noted", "differs", "not compared"]  # noted: worth a look, and no reason to stop a release
    report: str  # in words
    now: str
    note: str = ""


def measure_again(run: Path, progress: Progress, slower: float | None = None) -> tuple[Again, ...]:
    """Both files on the test split and against the clock once more.

    Accuracy is paired with the predictions that were kept, sample by sample. Speed-ups differ where their intervals
    are further apart than two sessions of the same files can be; before that is said, they are measured for longer. So
    are times, see `compare_absolute`.

    Args:
        run: directory of a finished run that is what its lock says.
        slower: both files together may take at most so many times as long as in the report; None: that is only said.

    Raises:
        RunDirectoryError, ArtifactError, TaskError: see `opened_run.open_run`.
        MeasurementError: a process that crashed or took too long.
    """
    opened = open_run(run)
    pair, recipe = opened.pair, opened.recipe
    report = opened.run.report
    progress.say("asking both files for the test split again")
    found = list(_answers(opened))
    if reason := TARGETS[report.target].unmeasurable():
        return (*found, _not_timed(reason))
    if other := other_machine(report, pair.machine):
        return (*found, _not_timed(f"measured on another machine ({other})"))
    progress.say("timing original and final again")
    first = (pair.original, pair.final, pair.task, recipe, pair.threads, progress)
    weighed = any(each.name.startswith("peak_memory") for each in report.limits)
    costs = (measuring.measure_costs if weighed else measuring.time_alone)(*first)
    figures = _compared(opened, costs, slower)
    # Another look times again and weighs nothing; where the restarts give one look, there is none.
    timed = [each for each in figures if "memory" not in each.what]
    if any(each.status == "differs" for each in timed) and measuring.has_another_look(recipe):
        progress.say("  the times differ: measuring for longer")
        figures = _compared(opened, measuring.look_again(costs, *first), slower)
    return (*found, *figures)


def compare_times(report: Report, now: Sequence[BatchLatency]) -> list[Again]:
    """The speed-up at each batch size that the report has."""
    found, fresh = [], {each.batch: each for each in now}
    for before in report.latency:
        what, said = f"speed-up, batch {before.batch}", words.speed_change(before.speedup)
        if before.batch not in fresh:
            found.append(Again(what=what, status="not compared", report=said, now="", note="not in the recipe"))
            continue
        after = fresh[before.batch].speedup
        gap = max(after.low / before.speedup.high, before.speedup.low / after.high) - 1
        status: Literal["same", "noted", "differs"] = "differs" if gap > _BETWEEN_SESSIONS else "same"
        note = ""
        if gap > 0:
            note = "slower than it was" if after.median < before.speedup.median else "faster than it was"
        if 0 < gap <= _BETWEEN_SESSIONS:
            status, note = "noted", f"{note}, by {gap:.1%} beyond both intervals"
        found.append(Again(what=what, status=status, report=said, now=words.speed_change(after), note=note))
    return found


def compare_absolute(report: Report, now: Sequence[BatchLatency], slower: float | None) -> list[Again]:
    """Both files slower (or faster) alike, which the speed-up cannot show, at each batch size of then and now.

    The change of both is that of the file that changed less, by the medians of calls. A governor, another build
    of the runtime or a busy machine does that, so that it is noted beyond `_BETWEEN_DAYS`, and differs
    beyond `slower` alone.
    """
    found, fresh = [], {each.batch: each for each in now}
    for before in (each for each in report.latency if each.batch in fresh):
        after = fresh[before.batch]
        sides = ((before.original, after.original), (before.final, after.final))
        ratios = [new.p50 / old.p50 for old, new in sides]
        longer, shorter = min(ratios), 1 / max(ratios)
        status: Literal["same", "noted", "differs"] = "noted" if max(longer, shorter) > _BETWEEN_DAYS else "same"
        note = "" if status == "same" else f"both {shorter:.2f}x faster than they were"
        if longer > _BETWEEN_DAYS:
            note = f"both {longer:.2f}x slower than they were: look at clocks, other load and the runtime's build"
        if slower is not None and longer > slower:
            status, note = "differs", f"both {longer:.2f}x slower than they were, at most {slower:g}x is allowed"
        said = [
            " and ".join(words.milliseconds(each.p50) for each in each_side) for each_side in zip(*sides, strict=True)
        ]
        what = f"times of both, batch {before.batch}"
        found.append(Again(what=what, status=status, report=said[0], now=said[1], note=note))
    return found


def compare_scores(metric: Metric, side: str, before: np.ndarray, now: np.ndarray, confidence: float) -> Again:
    """One side's metric on the same samples, then and now: it differs where the loss has an interval without 0."""
    values = [metrics.value(metric, scores) for scores in (before, now)]
    texts = [f"{value:.6g}" for value in values]
    what = f"{metric.name}, {side}"
    if np.array_equal(before, now):
        return Again(what=what, status="same", report=texts[0], now=texts[1], note="every sample")
    drop = accuracy.seen_drop(metric, before, now, confidence)
    changed = int(np.any((before != now).reshape(len(now), -1), axis=1).sum())
    note = f"{changed:,} of {len(now):,} samples differ, loss {drop.value:.4f} ({drop.low:.4f} to {drop.high:.4f})"
    status: Literal["same", "differs"] = "differs" if drop.low > 0 or drop.high < 0 else "same"
    return Again(what=what, status=status, report=texts[0], now=texts[1], note=note)


def _answers(opened: Opened) -> Iterator[Again]:
    pair, run = opened.pair, opened.run
    with tempfile.TemporaryDirectory(prefix="edgesmith-verify-") as name:
        predictions.keep_predictions(pair.original, pair.final, pair.task, pair.threads, Path(name))
        with np.load(Path(name) / predictions.PREDICTIONS, allow_pickle=False) as stored:
            arrays: Mapping[str, np.ndarray] = dict(stored)
    for side in ("original", "final"):
        for metric in task_metrics(pair.task):
            now = metrics.scores_of(metric, under(f"{side}/", arrays), arrays["labels"])
            yield compare_scores(metric, side, run.scores(metric, side), now, run.report.confidence)


def _compared(opened: Opened, costs: Costs, slower: float | None) -> list[Again]:
    report, now = opened.run.report, [batch_latency(paired) for paired in costs.latency]
    return [*compare_times(report, now), *compare_absolute(report, now, slower), *_limits(opened, costs)]


def _limits(opened: Opened, costs: Costs) -> Iterator[Again]:
    """Limits on times and memory, which have their interval in the report."""
    pair, report, limits = opened.pair, opened.run.report, opened.recipe.limits
    stored = [each for each in report.limits if each.name in _STORED]
    if not stored:
        return
    kept = opened.run.path.with_name(report.predictions)
    evidence = measuring.outcome(pair.original, pair.final, costs, pair.task, limits, kept).evidence
    now = {each.name: each for each in judge(limits, evidence, opened.metric.higher_is_better).results}
    yield from (compare_limit(report, each, now[each.name]) for each in stored)


def compare_limit(report: Report, before: LimitResult, after: LimitResult) -> Again:
    """A limit on a time or on memory, then and now: it differs where it is missed now and was not, or see `_STORED`."""
    said = [report_words.measured(report, each) for each in (before, after)]
    ends = [_interval(each) for each in (before, after)]
    status: Literal["same", "noted", "differs", "not compared"] = "same"
    note: str = after.status
    allowed = _STORED[before.name]
    if ends[0] is None or ends[1] is None:
        status, note = "not compared", after.note or before.note
    elif after.status == "fail" and before.status != "fail":
        status, note = "differs", "the limit is missed now"
    elif _apart(ends[0], ends[1], 0.0):
        beyond = allowed is not None and _apart(ends[0], ends[1], allowed)
        status, note = "differs" if beyond else "noted", f"beyond both intervals; the limit: {after.status}"
    return Again(what=report_words.promise(report, before), status=status, report=said[0], now=said[1], note=note)


def _apart(first: Interval, second: Interval, margin: float) -> bool:
    """Whether the intervals share no value, nor would with `margin`, a share, added to the lower one's end."""
    return second.low > first.high * (1 + margin) or first.low > second.high * (1 + margin)


def _interval(limit: LimitResult) -> Interval | None:
    if limit.measured is None or limit.low is None or limit.high is None:
        return None
    return Interval(value=limit.measured, low=limit.low, high=limit.high)


def _not_timed(reason: str) -> Again:
    return Again(what="times and memory", status="not compared", report="", now="", note=reason)
