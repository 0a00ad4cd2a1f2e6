"""The last release's file and the new one beside each other, here: changes of time and memory with intervals."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ..benches.gates import artifact_check, last_release
from ..benches.gates.finished import Finished
from ..benches.gates.last_release import TIMED, Change
from ..benches.timing import fresh_process, intervals, latency
from ..benches.timing.latency import PairedLatency
from ..core.errors import ArtifactError
from ..core.values import Artifact, Interval
from ..exporters.graph.artifact_file import describe_file
from ..exporters.targets.targets import TARGETS
from .opened_run import Opened, open_run
from .progress import Progress

_SAME = "the same file as the last release's"


def measured(run: Path, baseline: Finished, margins: dict[str, float], progress: Progress) -> dict[str, Change]:
    """By a name in `TIMED`, for each that a limit of the run is set on: how much worse the new file is, as a share.

    Where a time's interval holds its margin, both are timed again for longer, as a run does it.

    Args:
        run: directory of the new run.
        baseline: the last release's, its files beside its report; see `finished.of_run`.

    Raises:
        ArtifactError: the last release's file is missing or not the one that its report speaks of; another task.
        RunDirectoryError, TaskError: see `opened_run.open_run`.
    """
    opened = open_run(run)
    last_release.refuse_other(opened.run, baseline)
    theirs, ours = _judged_file(baseline), opened.pair.final
    wanted = [name for name in last_release.figures(opened.run.report) if name in TIMED]
    if not wanted:
        return {}
    if theirs.digest == ours.digest:
        return dict.fromkeys(wanted, (Interval(value=0.0, low=0.0, high=0.0), _SAME))
    if reason := _not_comparable(opened, baseline):
        return dict.fromkeys(wanted, (None, f"not compared: {reason}"))
    found: dict[str, Change] = {}
    if "peak_memory" in wanted:
        found["peak_memory"] = _memory(theirs, ours, opened)
    if times := [name for name in wanted if name != "peak_memory"]:
        allowed = {name: margins.get(name, last_release.MARGINS[name]) or 0.0 for name in times}
        found |= _times(theirs, ours, opened, allowed, progress)
    return found


def _judged_file(baseline: Finished) -> Artifact:
    """The file that the last release was judged on."""
    report, folder = baseline.report, baseline.path.parent
    said = next(each for each in report.artifacts if each.target == report.target)
    path = folder / said.path
    if problem := artifact_check.problem(path, said, report.calibration_digest):
        raise ArtifactError(f"{path}: {problem}; give --baseline the report.json to compare what it holds")
    return dataclasses.replace(describe_file(path, report.target), dialect=said.dialect, precision=said.precision)


def _not_comparable(opened: Opened, baseline: Finished) -> str:
    """Why times would say nothing here, or an empty text."""
    if reason := TARGETS[opened.pair.final.target].unmeasurable():
        return reason
    there, here = baseline.report.environment.get("threads"), opened.pair.threads
    return "" if there == here else f"the last release ran with {there} thread(s), this run with {here}"


def _times(
    theirs: Artifact, ours: Artifact, opened: Opened, allowed: dict[str, float], progress: Progress
) -> dict[str, Change]:
    measure, confidence = opened.recipe.measure, opened.recipe.limits.confidence
    feeds = latency.rotating_feeds(opened.pair.task.test, measure.batch_sizes)
    found: dict[str, Change] = {}
    for look, (restarts, at) in enumerate(intervals.looks(measure.restarts, confidence)):
        progress.say("timing the last release's file and the new one" + (", for longer" if look else ""))
        paired = latency.compare(
            [theirs, ours],
            feeds,
            opened.pair.threads,
            restarts=restarts,
            seconds=restarts * measure.seconds,
            seed=look,
            confidence=at,
        )
        found = dict(_changes(paired, allowed))
        if all(_settled(found[name], allowed[name]) for name in allowed):
            break
    return found


def _changes(paired: list[PairedLatency], allowed: dict[str, float]) -> Iterator[tuple[str, Change]]:
    """`speedup` is of the batch size that decides, `latency_ms` of the first."""
    changes = {each.batch: _slower(each.speedup[0]) for each in paired}
    for name, margin in allowed.items():
        batch = paired[0].batch if name == "latency_ms" else last_release.worst_batch(changes, margin)
        noise = next(each.noise_floor for each in paired if each.batch == batch)
        which = "" if name == "latency_ms" else f", the worst of {', '.join(map(str, changes))}"
        yield name, (changes[batch], f"batch {batch}{which}; both files timed side by side, noise floor {noise:.1%}")


def _slower(speedup: Interval) -> Interval:
    """Times as fast -> share of the time that it takes more."""
    return Interval(value=1 / speedup.value - 1, low=1 / speedup.high - 1, high=1 / speedup.low - 1)


def _settled(change: Change, margin: float) -> bool:
    found = change[0]
    return found is not None and (found.high <= margin or found.low > margin)


def _memory(theirs: Artifact, ours: Artifact, opened: Opened) -> Change:
    batch = opened.recipe.measure.batch_sizes[0]
    feed = latency.rotating_feeds(opened.pair.task.test, (batch,), 1)[batch][0]
    repeats = intervals.enough_restarts(opened.recipe.limits.confidence)
    found = fresh_process.measure([theirs, ours], feed, opened.pair.threads, repeats)
    before, now = (fresh_process.succeeded(each).peak_memory for each in found)
    if before.low <= 0:
        return None, "not compared: the last release's file adds too little memory to be told from none"
    change = Interval(value=now.value / before.value - 1, low=now.low / before.high - 1, high=now.high / before.low - 1)
    return change, "both files weighed now"
