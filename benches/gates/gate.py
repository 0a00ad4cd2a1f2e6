"""A finished run against its own limits once more, and against the last release: one list of checks, one status.

Nothing is measured here. Accuracy is recomputed from the predictions that were kept, sizes are read from the files,
times and memory are those of the reports, or what the caller has measured of both releases' files.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core import digest
from ...core.errors import ArtifactError
from ...core.files import write_atomic
from ...core.limits import ASKED, LimitResult, Limits, Status, Verdict
from ...core.tables import unknown
from ...core.task import Metric
from ...core.values import Interval
from ..audits.disparity import disparities
from ..metrics import accuracy, metrics
from ..report import report_words, words
from ..report.report import Report, to_json
from . import artifact_check, last_limits, last_release
from .finished import Finished, consistent, read
from .gate_check import Check, Gate
from .judge import Evidence, SideEvidence, judge
from .last_release import MARGINS, Change

# Limits whose interval only the report has.
_KEPT = ("corruption_drop", "latency_ms", "peak_memory_ratio", "peak_memory_bytes", ASKED)


def check(
    run: Finished,
    baseline: Finished | None,
    metric: Metric,
    margins: Mapping[str, float],
    measured: Mapping[str, Change] | None = None,
) -> Gate:
    """Every file, every limit of the run's own, and every figure that a limit is set on against the last release.

    Args:
        run: with its predictions, see `finished.of_run`.
        baseline: of the last release; None: only the run itself is judged.
        metric: the main one of both.
        margins: by a name in `MARGINS`, in place of what stands there.
        measured: what both releases' files gave beside each other, see `last_release.compare`.

    Raises:
        ArtifactError: no predictions, or a baseline of another task, target, metric or test split, or one that
            contradicts itself.
        UsageError: a margin that is unknown or missing.
    """
    check_margins(margins)
    if run.arrays is None:
        raise ArtifactError(f"{run.path.parent}: no {run.report.predictions}; run `edgesmith compress` again")
    checks = [*_files(run), _predictions(run, metric), *_own(run, metric)]
    if baseline is not None:
        last_release.refuse_other(run, baseline)
        consistent(baseline)
        checks += [
            last_release.compare(name, run, baseline, metric, margins, measured or {})
            for name in last_release.figures(run.report)
        ]
        checks += filter(None, [last_limits.loosened(run.report, baseline.report)])
    status = Verdict(results=tuple(_as_result(each) for each in checks)).status
    return Gate(
        task=run.report.task,
        target=run.report.target,
        confidence=run.report.confidence,
        baseline=None if baseline is None else str(baseline.path),
        status=status,
        checks=tuple(checks),
    )


def check_margins(margins: Mapping[str, float]) -> None:
    """Refuse a name that stands for nothing.

    Raises:
        UsageError: not one of `MARGINS`.
    """
    for name in margins:
        if name not in MARGINS:
            raise unknown(name, MARGINS, "--margin")


def ratchet(gate: Gate, run: Finished, path: Path) -> Gate:
    """Make the run the new bar at `path` if it is better, and say what was done.

    Better: everything is proven, no limit is looser, no figure is worse even by its estimate, and one is proven to be
    better. A first bar needs everything proven. The predictions get a name of their own and the report is replaced
    last, in one step, so that a kill leaves the old bar or the new one.
    """
    kept = _not_better(gate)
    if kept:
        return dataclasses.replace(gate, ratchet=f"{path} stays as it is: {kept}")
    predictions = run.path.with_name(run.report.predictions).read_bytes()
    name = f"predictions-{digest.of_bytes(predictions)[:12]}.npz"
    before = read(path).report.predictions if path.exists() else name
    write_atomic(path.with_name(name), predictions)
    write_atomic(path, to_json(dataclasses.replace(run.report, predictions=name)))
    if before != name and before.startswith("predictions-"):
        path.with_name(before).unlink(missing_ok=True)
    return dataclasses.replace(gate, ratchet=f"{path} is the new bar, its predictions in {name}")


def _not_better(gate: Gate) -> str:
    """Why the run is no new bar; empty: it is one."""
    if gate.status != "pass":
        return f"the gate says {gate.status}"
    compared = [each for each in gate.checks if each.group == "baseline"]
    if less := next((each for each in compared if each.name == last_limits.NAME), None):
        return f"{less.note}: {less.found}"
    losses = [each for each in compared if each.name != "negative_flips"]  # any other file has some
    worse = [each.name for each in losses if each.measured is not None and each.measured > 0]
    if worse:
        return f"within its margin, but worse by its estimate: {', '.join(worse)}"
    if compared and not any(each.high is not None and each.high < 0 for each in compared):
        return "nothing is proven to be better"
    return ""


def _files(run: Finished) -> list[Check]:
    checks = []
    for each in run.report.artifacts:
        problem = artifact_check.problem(run.path.parent / each.path, each, run.report.calibration_digest)
        checks.append(
            Check(
                group="file",
                name=each.target,
                status="fail" if problem else "pass",
                promise=f"{each.path} is the {each.precision} file that the run wrote",
                found=problem or f"{words.size(each.file_bytes)}, SHA-256 {each.digest[:12]}",
            )
        )
    return checks


def _predictions(run: Finished, metric: Metric) -> Check:
    """A report whose numbers do not follow from its predictions proves nothing; a loss is of both sides."""
    report = run.report
    sides = [
        (side, getattr(report, side).metrics[report.main_metric], metrics.value(metric, run.scores(metric, side)))
        for side in ("final", "original")
    ]
    wrong = [each for each in sides if abs(each[2] - each[1].value) > 1e-9 * max(1.0, abs(each[1].value))]
    side, reported, value = (wrong or sides)[0]
    whose = "" if side == "final" else f" of the {report.against}"
    return Check(
        group="file",
        name="predictions",
        status="fail" if wrong else "pass",
        promise=f"{report.predictions} gives the report's {metric.name}{whose}, {words.metric_value(reported)}",
        found=words.metric_value(reported, value),
        note=f"they are of another run or another model than {run.path.parent.name}" if wrong else "",
    )


def _own(run: Finished, metric: Metric) -> list[Check]:
    """The run's limits, judged again."""
    report, confidence = run.report, run.report.confidence
    given: dict[str, Any] = {each.name: each.limit for each in report.limits if each.name != ASKED}
    limits = Limits(**given, confidence=confidence)
    original, final = (run.scores(metric, side) for side in ("original", "final"))
    value, reason = metrics.interval(metric, final, confidence), report.unmeasured_reason
    judged = next(each for each in report.artifacts if each.target == report.target)
    path = run.path.parent / judged.path
    size = path.stat().st_size if path.is_file() else judged.file_bytes
    evidence = Evidence(
        original=SideEvidence(**{key: getattr(report.original, key) for key in ("file_bytes", "macs", "parameters")}),
        final=SideEvidence(file_bytes=size, macs=report.final.macs, parameters=report.final.parameters),
        drop=None if reason else accuracy.paired_drop(metric, original, final, confidence),
        metric=None if reason else value,
        samples=len(final),
        drop_samples_needed=None
        if limits.drop is None
        else accuracy.samples_needed(metric, original, final, limits.drop, confidence),
        metric_samples_needed=None
        if limits.metric is None
        else accuracy.samples_to_settle(value, limits.metric, len(final)),
        negative_flips=None
        if reason or limits.negative_flips is None
        else accuracy.negative_flips(metric, original, final, confidence),
        groups=run.groups(metric, original, final),
        disparities=() if limits.disparity is None else disparities(metric, original, final, run.masks(), confidence),
        speedups=_speedups(report) or None,
        same_file=report.same_file,
        unmeasured_reason=reason,
    )
    kept = {each.name: _again(each) for each in report.limits if each.name in _KEPT}
    results = [
        *judge(limits, evidence, metric.higher_is_better).results,
        *(kept[name] for name in kept if name == ASKED),
    ]
    return [_own_check(report, kept.get(each.name, each)) for each in results]


def _speedups(report: Report) -> dict[int, Interval]:
    found = ((each.batch, each.speedup) for each in report.latency)
    return {batch: Interval(value=up.median, low=up.low, high=up.high) for batch, up in found}


def _again(result: LimitResult) -> LimitResult:
    """A limit of the kind "at most" by the interval that the report has."""
    if result.low is None or result.high is None:
        return dataclasses.replace(result, status="unproven")
    status: Status = "pass" if result.high <= result.limit else "fail" if result.low > result.limit else "unproven"
    return dataclasses.replace(result, status=status)


def _own_check(report: Report, result: LimitResult) -> Check:
    return Check(
        group="limit",
        promise=report_words.promise(report, result),
        found=report_words.measured(report, result),
        **{key: getattr(result, key) for key in ("name", "status", "note", "limit", "measured", "low", "high")},
    )


def _as_result(each: Check) -> LimitResult:
    return LimitResult(name=each.id, limit=0.0, measured=None, low=None, high=None, status=each.status)
