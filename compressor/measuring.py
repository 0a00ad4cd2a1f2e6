"""Original and final in the target's runtime; and, for the ledger, every stage's result on validation data."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from ..benches.audits.disparity import Kind, disparities
from ..benches.gates.finished import under
from ..benches.gates.judge import Evidence, SideEvidence
from ..benches.metrics import accuracy, groups, metrics
from ..benches.metrics.flips import CalibrationError, Flips, are_probabilities, calibration_error, flips, has_confidence
from ..benches.metrics.groups import GroupLoss
from ..benches.report.report import BatchLatency, MetricValue, Side, Throughput, batch_latency, batch_throughput
from ..benches.timing import energy, fresh_process, intervals, latency, throughput
from ..benches.timing.fresh_process import FreshProcess
from ..benches.timing.latency import PairedLatency
from ..benches.timing.throughput import PairedThroughput
from ..core.limits import Limits, Verdict
from ..core.task import Metric, Task
from ..core.values import Artifact, Interval
from ..exporters.graph import graph_stats, onnx_file
from ..exporters.targets.targets import TARGETS
from . import engines
from .artifacts import open_session
from .evaluation import evaluate, old_metric, task_metrics
from .measure_options import Measure
from .progress import Progress
from .recipe import Recipe
from .schema import plain

# A stage's latency is a glance, no interval of it is shown; the verdict's is measured for as long as the recipe says.
_GLANCE: Mapping[str, Any] = {"restarts": 2, "confidence": 0.75}
_GLANCE_SECONDS = 1.0  # at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Time and memory of original and final; nothing where the target's runtime is not here."""

    latency: tuple[PairedLatency, ...] = ()
    fresh: tuple[FreshProcess, ...] = ()  # original, final
    joules: tuple[Interval, ...] = ()  # of one sample; original, final
    energy_saving: Interval | None = None  # original / final, paired
    energy_reason: str = ""  # why there are none
    throughput: tuple[PairedThroughput, ...] = ()
    throughput_reason: str = ""  # why there is none, where it was asked for


def stage_facts(artifact: Artifact, original: Artifact, task: Task, measure: Measure, threads: int) -> dict[str, Any]:
    """What the ledger says about one stage: main metric on validation, latency, counts, size."""
    metric, kept, old = task_metrics(task)[0], old_metric(task), None
    session = open_session(artifact, threads)
    try:
        score = evaluate(session, task.split("validation", "the ledger"), (metric,))[metric.name]
        if kept is not None and task.old is not None:
            old = evaluate(session, task.old.split("validation", "the ledger"), (kept,))[kept.name]
    finally:
        session.close()
    milliseconds = None
    if TARGETS[artifact.target].unmeasurable() is None:
        feeds = latency.rotating_feeds(task.split("validation", "the ledger"), measure.batch_sizes[:1])
        seconds = min(_GLANCE_SECONDS, measure.seconds)
        (paired,) = latency.compare([original, artifact], feeds, threads, seconds=seconds, **_GLANCE)
        milliseconds = paired.latency[1].p50
    macs, parameters = graph_stats.macs_and_parameters(onnx_file.load(artifact.path))
    return {
        "accuracy": score,
        "old": old,
        "latency_ms": milliseconds,
        "macs": macs,
        "parameters": parameters,
        "file_bytes": artifact.file_bytes,
    }


def measure_costs(
    original: Artifact, final: Artifact, task: Task, recipe: Recipe, threads: int, progress: Progress
) -> Costs:
    """Time and memory of both, where the target's runtime is here; the time for a first look (`intervals.looks`)."""
    reason = TARGETS[final.target].unmeasurable()
    if reason is not None:
        return Costs(energy_reason=reason)
    feed = latency.rotating_feeds(task.test, recipe.measure.batch_sizes[:1], 1)[recipe.measure.batch_sizes[0]][0]
    repeats = intervals.enough_restarts(recipe.limits.confidence)  # a limit on memory is judged by what they span
    fresh = fresh_process.measure([original, final], feed, threads, repeats)
    return Costs(
        latency=_timed([original, final], task, recipe, 0, threads, progress),
        fresh=tuple(map(fresh_process.succeeded, fresh)),
        **_energy([original, final], task, recipe, threads),
        **_throughput([original, final], task, recipe, threads, progress),
    )


def _throughput(
    pair: Sequence[Artifact], task: Task, recipe: Recipe, threads: int, progress: Progress
) -> dict[str, Any]:
    """Fields of `Costs`: samples per second at every batch size and concurrency that the recipe names."""
    wanted, (restarts, confidence) = recipe.measure.concurrency, _looks(recipe)[0]
    reason = next(filter(None, (throughput.cannot(each, wanted) for each in pair)), "")
    if reason or not wanted:
        return {"throughput_reason": reason}
    with progress.bar("counting calls at once, in fresh processes", restarts) as advance:
        found = throughput.compare(
            pair,
            latency.rotating_feeds(task.test, recipe.measure.batch_sizes),
            wanted,
            threads,
            restarts=restarts,
            seconds=restarts * recipe.measure.seconds,
            confidence=confidence,
            progress=lambda done, total: advance(done, f"{done} of {total}"),
        )
    return {"throughput": tuple(found)}


def _energy(pair: Sequence[Artifact], task: Task, recipe: Recipe, threads: int) -> dict[str, Any]:
    """Fields of `Costs`: what a sample takes of both at the first batch size, where a counter is here."""
    reason = energy.why_not([each.target for each in pair])
    if reason:
        return {"energy_reason": reason}
    restarts, confidence = _looks(recipe)[0]
    (found,) = throughput.compare(
        pair,
        latency.rotating_feeds(task.test, recipe.measure.batch_sizes[:1]),
        (1,),
        threads,
        restarts=restarts,
        seconds=restarts * recipe.measure.seconds,
        confidence=confidence,
    )
    saving = found.savings[0] if found.savings else None
    return {"joules": found.joules, "energy_saving": saving, "energy_reason": found.energy_reason}


def time_alone(
    original: Artifact, final: Artifact, task: Task, recipe: Recipe, threads: int, progress: Progress
) -> Costs:
    """A first look at the time, and nothing weighed."""
    return Costs(latency=_timed([original, final], task, recipe, 0, threads, progress))


def look_again(
    costs: Costs, original: Artifact, final: Artifact, task: Task, recipe: Recipe, threads: int, progress: Progress
) -> Costs:
    """The same with the time of a second, longer look, which nothing of the first is used for."""
    return dataclasses.replace(costs, latency=_timed([original, final], task, recipe, 1, threads, progress))


def wants_another_look(verdict: Verdict, recipe: Recipe) -> bool:
    """Whether the time alone was measured and decides nothing yet: a noisy restart is no reason to refuse a release."""
    undecided = (each for each in verdict.results if each.status == "unproven" and each.measured is not None)
    timed = any(each.name in ("speedup", "latency_ms") for each in undecided)
    return verdict.status == "unproven" and timed and has_another_look(recipe)


def has_another_look(recipe: Recipe) -> bool:
    """Whether the restarts of a longer measurement give its share of the confidence."""
    return len(_looks(recipe)) > 1


def _looks(recipe: Recipe) -> tuple[tuple[int, float], ...]:
    return intervals.looks(recipe.measure.restarts, recipe.limits.confidence)


def _timed(
    pair: Sequence[Artifact], task: Task, recipe: Recipe, look: int, threads: int, progress: Progress
) -> tuple[PairedLatency, ...]:
    restarts, confidence = _looks(recipe)[look]
    with progress.bar("timing, in fresh processes", restarts) as advance:
        paired = latency.compare(
            pair,
            latency.rotating_feeds(task.test, recipe.measure.batch_sizes),
            threads,
            restarts=restarts,
            seconds=restarts * recipe.measure.seconds,
            seed=look,
            confidence=confidence,
            progress=lambda done, total: advance(done, f"{done} of {total}"),
        )
    return tuple(paired)


def costs_to_json(costs: Costs) -> dict[str, Any]:
    """Plain data."""
    data: dict[str, Any] = plain(costs)
    return data


def costs_from_json(data: Mapping[str, Any]) -> Costs:
    """The inverse of `costs_to_json`."""
    return pydantic.TypeAdapter(Costs).validate_python(data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Both sides as the report shows them, and the evidence the limits are judged on."""

    original: Side
    final: Side
    drop: Interval
    latency: tuple[BatchLatency, ...]
    evidence: Evidence
    test_samples: int
    flips: Flips | None
    calibration_error: CalibrationError | None
    energy_saving: Interval | None
    energy_reason: str
    throughput: tuple[Throughput, ...]
    throughput_reason: str


def outcome(
    original: Artifact,
    final: Artifact,
    costs: Costs,
    task: Task,
    limits: Limits,
    predictions: Path,
    corruptions: tuple[GroupLoss, ...] = (),
) -> Outcome:
    """Put predictions, costs and files together; cheap, so that a changed limit measures nothing again."""
    with np.load(predictions, allow_pickle=False) as stored:
        arrays = dict(stored)
    labels, wanted, old = arrays["labels"], task_metrics(task), old_metric(task)
    main, reason = wanted[0], TARGETS[final.target].unmeasurable() or ""
    outputs = {side: under(f"{side}/", arrays) for side in ("original", "final")}
    scored: dict[str, list[tuple[Metric, np.ndarray]]] = {}
    for side, answers in outputs.items():
        scored[side] = [(metric, metrics.scores_of(metric, answers, labels)) for metric in wanted]
        if old is not None:
            scored[side].append((old, metrics.scores_of(old, under(f"old/{side}/", arrays), arrays["old/labels"])))
    scores = {side: rows[0][1] for side, rows in scored.items()}
    pair = (scores["original"], scores["final"])
    masks = _group_masks(main, labels, under("slices/", arrays), task, limits)
    drop = accuracy.paired_drop(main, *pair, limits.confidence)
    sides = {
        "original": _side(original, scored["original"], costs, 0, limits.confidence),
        "final": _side(final, scored["final"], costs, 1, limits.confidence),
    }
    value = metrics.interval(main, scores["final"], limits.confidence)
    first = costs.latency[0].latency[1] if costs.latency else None
    evidence = Evidence(
        original=_side_evidence(sides["original"], costs, 0),
        final=_side_evidence(sides["final"], costs, 1),
        drop=None if reason else drop,
        metric=None if reason else value,
        samples=len(labels),
        drop_samples_needed=None
        if limits.drop is None
        else accuracy.samples_needed(main, scores["original"], scores["final"], limits.drop, limits.confidence),
        metric_samples_needed=None
        if limits.metric is None
        else accuracy.samples_to_settle(value, limits.metric, len(labels)),
        negative_flips=None
        if reason or limits.negative_flips is None
        else accuracy.negative_flips(main, *pair, limits.confidence),
        groups=tuple(
            loss for kind, each in masks.items() for loss in groups.losses(main, *pair, each, kind, limits.confidence)
        ),
        corruptions=corruptions,
        disparities=() if limits.disparity is None else disparities(main, *pair, masks, limits.confidence),
        speedups={paired.batch: paired.speedup[0] for paired in costs.latency} or None,
        latency_ms=None if first is None else Interval(value=first.p50, low=first.low, high=first.high),
        same_file=not reason and _same_file(original, final),
        unmeasured_reason=reason,
    )
    return Outcome(
        original=sides["original"],
        final=sides["final"],
        drop=drop,
        latency=tuple(batch_latency(paired) for paired in costs.latency),
        evidence=evidence,
        test_samples=len(labels),
        flips=flips(scores["original"], scores["final"], main.higher_is_better) if main.kind == "proportion" else None,
        calibration_error=_calibration_error(outputs, labels, main),
        energy_saving=costs.energy_saving,
        energy_reason=costs.energy_reason,
        throughput=tuple(batch_throughput(paired) for paired in costs.throughput),
        throughput_reason=costs.throughput_reason,
    )


def _same_file(original: Artifact, final: Artifact) -> bool:
    """Whether the very same bytes run; an engine is built of a file, and no two builds need be alike."""
    return original.digest == final.digest and final.target != engines.TARGET


def _group_masks(
    main: Metric, labels: np.ndarray, slices: dict[str, np.ndarray], task: Task, limits: Limits
) -> dict[Kind, dict[str, np.ndarray]]:
    """Classes and slices; a bootstrap for every class takes its time, so that it is asked for."""
    wanted = main.kind != "statistic" or limits.class_drop is not None or limits.disparity is not None
    return {"class": groups.class_masks(labels, task.classes) if wanted else {}, "slice": slices}


def _calibration_error(
    outputs: Mapping[str, Mapping[str, np.ndarray]], labels: np.ndarray, main: Metric
) -> CalibrationError | None:
    """Of the output that the main metric reads."""
    original, final = (side[main.output or next(iter(side))] for side in (outputs["original"], outputs["final"]))
    if not has_confidence(original, labels):
        return None
    same = are_probabilities(original)
    errors = [calibration_error(each, labels, probabilities=same) for each in (original, final)]
    return CalibrationError(original=errors[0], final=errors[1])


def _side(
    artifact: Artifact,
    scored: Sequence[tuple[Metric, np.ndarray]],
    costs: Costs,
    index: int,
    confidence: float,
) -> Side:
    values = {}
    for metric, scores in scored:
        found = metrics.interval(metric, scores, confidence)
        values[metric.name] = MetricValue(
            value=found.value,
            low=found.low,
            high=found.high,
            higher_is_better=metric.higher_is_better,
            kind=metric.kind,
        )
    paired = batch_latency(costs.latency[0]) if costs.latency else None
    fresh = costs.fresh[index] if costs.fresh else None
    macs, parameters = graph_stats.macs_and_parameters(onnx_file.load(artifact.path))
    return Side(
        metrics=values,
        accuracy=values[scored[0][0].name].value,
        latency_ms=None if paired is None else (paired.original, paired.final)[index],
        peak_memory_bytes=None if fresh is None else round(fresh.peak_memory.value),
        held_memory_bytes=None if fresh is None else round(fresh.held_memory.value),
        start=None if fresh is None else fresh.start,
        arena=None if fresh is None else fresh.arena,
        arena_reason="" if fresh is None else fresh.arena_reason,
        device_memory_bytes=None if fresh is None or fresh.device_memory is None else round(fresh.device_memory.value),
        device_reason="" if fresh is None else fresh.device_reason,
        joules=costs.joules[index] if costs.joules else None,
        file_bytes=artifact.file_bytes,
        macs=macs,
        parameters=parameters,
    )


def _side_evidence(side: Side, costs: Costs, index: int) -> SideEvidence:
    peak = costs.fresh[index].peak_memory if costs.fresh else None
    return SideEvidence(file_bytes=side.file_bytes, macs=side.macs, parameters=side.parameters, peak_memory=peak)
