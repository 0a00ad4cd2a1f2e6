"""A run against the last release: no worse, by its intervals, in any figure that one of its limits is set on."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ...core.errors import ArtifactError, UsageError
from ...core.limits import LimitResult, Status
from ...core.task import Metric
from ...core.values import Interval
from ..metrics import accuracy
from ..report import report_words, words
from ..report.report import MetricSource, Report
from ..timing.environment import Description
from . import last_limits
from .finished import Finished
from .gate_check import Check
from .judge import RANK, judge_flips, judge_groups

# Largest loss against the last release where --margin says nothing: relative, but for losses of the metric, where it is
# the tighter of both runs' limits. Times and memory are noisy, and a file holds names; counts of operations are exact.
MARGINS: Mapping[str, float | None] = {
    "drop": None,
    "negative_flips": None,
    "class_drop": None,
    "slice_drop": None,
    "speedup": 0.05,
    "latency_ms": 0.05,
    "peak_memory": 0.05,
    "file": 0.01,
    "macs": 0.0,
    "params": 0.0,
}
FIGURES = {  # limit -> what is compared with the last release: a ratio to the original is the same size again
    "drop": "drop",
    "metric": "drop",
    "negative_flips": "negative_flips",
    "class_drop": "class_drop",
    "slice_drop": "slice_drop",
    "speedup": "speedup",
    "latency_ms": "latency_ms",
    "peak_memory_ratio": "peak_memory",
    "peak_memory_bytes": "peak_memory",
    "file_ratio": "file",
    "file_bytes": "file",
    "macs_ratio": "macs",
    "params_ratio": "params",
}
_SUBJECTS = {
    "speedup": "speed-up",
    "latency_ms": "latency",
    "peak_memory": "peak memory",
    "file": "file size",
    "macs": "MACs",
    "params": "parameters",
}
TIMED = ("speedup", "latency_ms", "peak_memory")
# What a time depends on beside the file.
_MACHINE = (
    *("cpu", "machine", "cpu_features", "cores", "threads", "cpu_governor", "power_mode"),
    *("board", "gpus", "nvidia_driver"),
)


def refuse_other(run: Finished, baseline: Finished) -> None:
    """Figures of another task, target, metric or test split say nothing about this run."""
    ours, theirs, where = run.report, baseline.report, baseline.path
    for field, what in (("task", "task"), ("target", "target"), ("main_metric", "main metric")):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            raise ArtifactError(
                f"{where}: a baseline of another {what}: '{other}', the run's is '{mine}'; give the last release's"
            )
    sources = [each.metric_source for each in (theirs, ours)]
    if not _alike(*sources):
        raise ArtifactError(
            f"{where}: a baseline whose main metric '{theirs.main_metric}' is another one, or of another output, than "
            "the run's of that name; give the last release's"
        )
    other_data = ours.test_samples != theirs.test_samples
    if ours.test_digest and theirs.test_digest:
        other_data = ours.test_digest != theirs.test_digest
    elif run.arrays is not None and baseline.arrays is not None:
        other_data = other_data or not np.array_equal(run.arrays["labels"], baseline.arrays["labels"])
    if other_data:
        raise ArtifactError(
            f"{where}: a baseline of other test data: {theirs.test_samples:,} samples there, {ours.test_samples:,} "
            "here, and they are not the same (values, order, labels or preprocessing); run the last release's recipe "
            "on this data and give that report"
        )


def _alike(mine: MetricSource | None, other: MetricSource | None) -> bool:
    """Whether both metrics may be the same: what a report does not say, or says as "the first", is no difference."""
    if mine is None or other is None:
        return True
    return mine.table == other.table and (None in (mine.output, other.output) or mine.output == other.output)


def figures(report: Report) -> list[str]:
    """What is compared: every figure that a limit of the run is set on."""
    return list(dict.fromkeys(FIGURES[each.name] for each in report.limits if each.name in FIGURES))


Change = tuple[Interval | None, str]  # how much worse, as a share; None: not compared; and a note


def compare(
    name: str,
    run: Finished,
    baseline: Finished,
    metric: Metric,
    margins: Mapping[str, float],
    measured: Mapping[str, Change],
) -> Check:
    """One figure against the last release's.

    Args:
        measured: by a name in `TIMED`, what a measurement of both files beside each other says, in place of the
            intervals that the reports hold.
    """
    margin = margins.get(name, MARGINS[name])
    if name == "drop":
        return _accuracy(run, baseline, metric, margin)
    if name in ("negative_flips", "class_drop", "slice_drop"):
        return _paired_only(name, run, baseline, metric, margin)
    assert margin is not None  # only `drop` has no default
    change, note = measured[name] if name in measured else _from_reports(name, run.report, baseline.report, margin)
    unchanged = name in TIMED and name not in measured and _same_in_same_place(run.report, baseline.report)
    promise = f"{_SUBJECTS[name]} at most {words.percent(margin)} worse than the last release's"
    if change is None:
        return Check(
            group="baseline",
            name=name,
            status="unproven",
            promise=promise,
            found="not compared",
            note=note,
            limit=margin,
        )
    status = status_of(change, margin)
    if unchanged and status == "unproven":  # two measurements of one file, and nothing shows that they differ
        status, note = "pass", "; ".join(filter(None, (note, "the same file as the last release's")))
    return Check(
        group="baseline",
        name=name,
        status=status,
        promise=promise,
        found=_percent_change(change),
        note=note,
        limit=margin,
        measured=change.value,
        low=change.low,
        high=change.high,
    )


def _from_reports(name: str, ours: Report, theirs: Report, margin: float) -> Change:
    if name in TIMED and (other := other_machine(theirs, ours.environment)):
        return None, f"not compared: measured on another machine ({other}); run the last release on this one"
    return _COMPARISONS[name](ours, theirs, name, margin)


def _accuracy(run: Finished, baseline: Finished, metric: Metric, margin: float | None) -> Check:
    """Non-inferiority of the main metric, paired where both sides' predictions of the same samples are there."""
    report, confidence = run.report, run.report.confidence
    margin = last_limits.tighter(report, baseline.report, "drop") if margin is None else margin
    if margin is None:
        raise UsageError(
            "--margin drop=VALUE is missing: neither the run nor the last release has a limit `drop` that could stand "
            "for it"
        )
    final = run.scores(metric, "final")
    if _same_model(run, baseline, metric):
        drop, needed, note = _interval(0.0, 0.0, 0.0), None, "the same file as the last release's"
    elif baseline.arrays is not None:
        theirs = baseline.scores(metric, "final")
        drop = accuracy.paired_drop(metric, theirs, final, confidence)
        needed = accuracy.samples_needed(metric, theirs, final, margin, confidence)
        note = f"paired over {len(final):,} test samples"
    else:
        drop = _unpaired(report, baseline.report)
        needed = accuracy.samples_to_settle(drop, margin, len(final))
        note = f"not paired: no {baseline.report.predictions} beside the baseline; its stored interval was used"
    status = status_of(drop, margin)
    result = LimitResult(name="drop", limit=margin, measured=drop.value, low=drop.low, high=drop.high, status=status)
    if status == "unproven":
        note += (
            f"; at least {needed:,} test samples would settle it"
            if needed
            else "; no number of samples would settle it"
        )
    if status == "fail":
        note += f"; {_whose_fault(run, baseline, metric)}"
    return Check(
        group="baseline",
        name="drop",
        status=status,
        promise=f"{report_words.promise(report, result)} against the last release",
        found=report_words.measured(report, result),
        note=note,
        limit=margin,
        measured=drop.value,
        low=drop.low,
        high=drop.high,
    )


def _paired_only(name: str, run: Finished, baseline: Finished, metric: Metric, margin: float | None) -> Check:
    """What a report has no interval of against another file: answers gone wrong, and what classes and slices lost."""
    margin = last_limits.tighter(run.report, baseline.report, name) if margin is None else margin
    assert margin is not None  # it is compared because the run has the limit
    if baseline.arrays is None:
        note = f"no {baseline.report.predictions} beside the baseline"
        result = LimitResult(
            name=name, limit=margin, measured=None, low=None, high=None, status="unproven", note=f"not compared: {note}"
        )
    else:
        theirs, ours = baseline.scores(metric, "final"), run.scores(metric, "final")
        if name == "negative_flips":
            share = accuracy.negative_flips(metric, theirs, ours, run.report.confidence)
            result = judge_flips(margin, share, len(ours))
        else:
            groups = [each for each in run.groups(metric, theirs, ours) if f"{each.kind}_drop" == name]
            result = judge_groups(name, margin, groups)
    if baseline.arrays is not None and _same_model(run, baseline, metric):
        note = "the same file as the last release's"
        result = dataclasses.replace(result, measured=0.0, low=0.0, high=0.0, status="pass", note=note)
    return Check(
        group="baseline",
        promise=f"{report_words.promise(run.report, result)} against the last release",
        found=report_words.measured(run.report, result),
        **{key: getattr(result, key) for key in ("name", "status", "note", "limit", "measured", "low", "high")},
    )


def _whose_fault(run: Finished, baseline: Finished, metric: Metric) -> str:
    """Whether the model that was given had lost before anything was done to it."""
    if baseline.arrays is None:
        sign = 1 if metric.higher_is_better else -1
        name = run.report.main_metric
        theirs, ours = (each.report.original.metrics[name] for each in (baseline, run))
        lost = theirs.low > ours.high if sign > 0 else ours.low > theirs.high
    else:
        before, now = (each.scores(metric, "original") for each in (baseline, run))
        lost = accuracy.seen_drop(metric, before, now, run.report.confidence).low > 0
    return (
        f"the {run.report.against} has lost already, before compression: look at its weights and its training"
        if lost
        else f"the {run.report.against} has not: look at what the stages and the targets' files do"
    )


def _unpaired(ours: Report, theirs: Report) -> Interval:
    """The loss from two separate intervals: their far ends, which is wider than needed and never too narrow."""
    new, old = ours.final.metrics[ours.main_metric], theirs.final.metrics[theirs.main_metric]
    if new.higher_is_better:
        return _interval(old.value - new.value, old.low - new.high, old.high - new.low)
    return _interval(new.value - old.value, new.low - old.high, new.high - old.low)


def _faster(ours: Report, theirs: Report, name: str, margin: float) -> Change:
    """Each run's speed-up is paired with its own original, so both must have started from the same file."""
    if _given(ours) != _given(theirs):
        return None, "not compared: the runs' speed-ups are over different originals; set latency_ms in both"
    found = {each.batch: each.speedup for each in ours.latency}
    before = {each.batch: each.speedup for each in theirs.latency}
    changes = {
        batch: _ratio(
            _interval(before[batch].median, before[batch].low, before[batch].high),
            _interval(now.median, now.low, now.high),
        )
        for batch, now in found.items()
        if batch in before
    }
    if not changes:
        return None, "not compared: no batch size that both runs have timed"
    worst = worst_batch(changes, margin)
    note = f"batch {worst}, the worst of {', '.join(map(str, changes))}; each against its own original"
    if alone := sorted(found.keys() ^ before.keys()):
        note += f"; not in both runs: batch {', '.join(map(str, alone))}"
    return changes[worst], note


def _stored(ours: Report, theirs: Report, name: str, margin: float) -> Change:
    """A limit that both runs have an interval of; a ratio to the original says something of one original alone."""
    reason = "both runs need this limit, for only a limit has its interval in report.json"
    for limit in [each.name for each in ours.limits if FIGURES.get(each.name) == name]:
        new, old = (_limit_interval(report, limit) for report in (ours, theirs))
        if new is None or old is None:
            continue
        if limit.endswith("_ratio") and _given(ours) != _given(theirs):
            reason = f"the runs' {name} is a ratio to different originals; set {name}_bytes in both"
        elif old.low <= 0:
            reason = "the last release's is too small to be told from none"
        else:
            return _ratio(new, old), ""
    return None, f"not compared: {reason}"


def _limit_interval(report: Report, name: str) -> Interval | None:
    """What a report measured for a limit of it; None: no such limit, or not measured."""
    found = next((each for each in report.limits if each.name == name), None)
    if found is None or found.measured is None or found.low is None or found.high is None:
        return None
    return _interval(found.measured, found.low, found.high)


def _exact(field: str) -> Callable[[Report, Report, str, float], Change]:
    def change(ours: Report, theirs: Report, name: str, margin: float) -> Change:
        new, old = getattr(ours.final, field), getattr(theirs.final, field)
        if new is None or not old:
            return None, "not compared: one of the reports has no figure"
        value = new / old - 1
        unit = words.size if field == "file_bytes" else words.amount
        return _interval(value, value, value), f"{unit(old)} then, {unit(new)} now"

    return change


_COMPARISONS: dict[str, Callable[[Report, Report, str, float], Change]] = {
    "speedup": _faster,
    "latency_ms": _stored,
    "peak_memory": _stored,
    "file": _exact("file_bytes"),
    "macs": _exact("macs"),
    "params": _exact("parameters"),
}


def _ratio(top: Interval, bottom: Interval) -> Interval:
    """`top` / `bottom` - 1 by the far ends."""
    return _interval(top.value / bottom.value - 1, top.low / bottom.high - 1, top.high / bottom.low - 1)


def other_machine(report: Report, here_now: Description) -> str:
    """What of the machine that a report's times are of differs from another one in words, or an empty text."""
    for key in _MACHINE:
        here, there = here_now.get(key), report.environment.get(key)
        if here != there:
            return f"{key}: {_shown(there)} there, {_shown(here)} here"
    return ""


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def worst_batch(changes: Mapping[int, Interval], margin: float) -> int:
    """The batch size that decides: the one whose status is worst, of those the one that lost most."""
    return min(changes, key=lambda batch: (RANK[status_of(changes[batch], margin)], -changes[batch].value))


def status_of(change: Interval, margin: float) -> Status:
    """Kept when the whole interval keeps the margin, missed when none of it does."""
    return "pass" if change.high <= margin else "fail" if change.low > margin else "unproven"


def _percent_change(change: Interval) -> str:
    def text(value: float) -> str:
        return f"{100 * value:+.1f} %"

    found = text(change.value)
    return found if change.low == change.high else f"{found} ({text(change.low)} to {text(change.high)})"


def _same_model(run: Finished, baseline: Finished, metric: Metric) -> bool:
    """The very file, with the same scores: then no sample, seen or unseen, can have been lost."""
    if _judged_digest(run.report) != _judged_digest(baseline.report):
        return False
    if baseline.arrays is None:
        return run.report.final.metrics[metric.name] == baseline.report.final.metrics[metric.name]
    return np.array_equal(run.scores(metric, "final"), baseline.scores(metric, "final"))


def _same_in_same_place(ours: Report, theirs: Report) -> bool:
    """The very file against the same model, on the same machine, with the same settings and versions of everything."""
    judged = [(_judged_digest(each), _against_digest(each), each.environment) for each in (ours, theirs)]
    return judged[0] == judged[1]


def _against_digest(report: Report) -> str:
    return next(stage.digest for stage in report.stages if stage.id == report.against)


def _judged_digest(report: Report) -> str:
    return next(each.digest for each in report.artifacts if each.target == report.target)


def _given(report: Report) -> tuple[str | int | None, ...]:
    """What a run's ratios are to: two originals of the same sizes cost the same, whatever their weights."""
    return (report.against, *(getattr(report.original, key) for key in ("file_bytes", "macs", "parameters")))


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)
