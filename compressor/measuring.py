"""Original and final in the target's runtime; and, for the ledger, every stage's result on validation data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from ..benches import accuracy, latency, memory, metrics
from ..benches.accuracy import labels_of, predict
from ..benches.judge import Evidence, SideEvidence
from ..benches.latency import PairedLatency
from ..benches.report import BatchLatency, MetricValue, Side, batch_latency
from ..core.files import atomic_path
from ..core.limits import Limits
from ..core.task import Metric, Task
from ..core.values import Artifact, Interval
from ..exporters import graph_stats, onnx_file
from ..exporters.targets import TARGETS
from .artifacts import open_session
from .evaluation import BATCH, evaluate, task_metrics
from .measure_options import Measure
from .progress import Progress
from .recipe import Recipe
from .schema import plain

PREDICTIONS = "predictions.npz"
_LEDGER_SECONDS = 1.0  # a stage's latency is a guide; the verdict's is measured for as long as the recipe says


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Time and memory of original and final; None where the target's runtime is not here."""

    latency: tuple[PairedLatency, ...] = ()
    memory_original: Interval | None = None
    memory_final: Interval | None = None


def stage_facts(artifact: Artifact, original: Artifact, task: Task, measure: Measure, threads: int) -> dict[str, Any]:
    """What the ledger says about one stage: main metric on validation, latency, counts, size."""
    metric = task_metrics(task)[0]
    session = open_session(artifact, threads)
    try:
        score = evaluate(session, task.split("validation", "the ledger"), (metric,))[metric.name]
    finally:
        session.close()
    milliseconds = None
    if TARGETS[artifact.target].unmeasurable() is None:
        feeds = latency.rotating_feeds(task.split("validation", "the ledger"), measure.batch_sizes[:1])
        (paired,) = latency.compare([original, artifact], feeds, threads, seconds=_LEDGER_SECONDS, **latency.GUIDE)
        milliseconds = paired.latency[1].p50
    macs, parameters = graph_stats.macs_and_parameters(onnx_file.load(artifact.path))
    return {
        "accuracy": score,
        "latency_ms": milliseconds,
        "macs": macs,
        "parameters": parameters,
        "file_bytes": artifact.file_bytes,
    }


def keep_predictions(original: Artifact, final: Artifact, task: Task, threads: int, folder: Path) -> None:
    """Run both on the test split and keep every prediction: `original/OUTPUT`, `final/OUTPUT`, `labels`."""
    arrays: dict[str, np.ndarray] = {"labels": labels_of(task.test)}
    for side, artifact in (("original", original), ("final", final)):
        session = open_session(artifact, threads)
        try:
            arrays |= {f"{side}/{name}": array for name, array in predict(session, task.test, BATCH).items()}
        finally:
            session.close()
    with atomic_path(folder / PREDICTIONS) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # its stub takes the keys for `allow_pickle`


def measure_costs(
    original: Artifact, final: Artifact, task: Task, recipe: Recipe, threads: int, progress: Progress
) -> Costs:
    """Time and memory of both, where the target's runtime is here."""
    if TARGETS[final.target].unmeasurable() is not None:
        return Costs()
    measure = recipe.measure
    feeds = latency.rotating_feeds(task.test, measure.batch_sizes)
    with progress.bar("timing, in fresh processes", measure.restarts) as advance:
        paired = latency.compare(
            [original, final],
            feeds,
            threads,
            restarts=measure.restarts,
            seconds=measure.restarts * measure.seconds,
            confidence=recipe.limits.confidence,
            progress=lambda done, total: advance(done, f"{done} of {total}"),
        )
    feed = feeds[measure.batch_sizes[0]][0]
    return Costs(
        latency=tuple(paired),
        memory_original=memory.peak_memory_interval(original, feed, threads),
        memory_final=memory.peak_memory_interval(final, feed, threads),
    )


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


def outcome(
    original: Artifact, final: Artifact, costs: Costs, task: Task, limits: Limits, predictions: Path
) -> Outcome:
    """Put predictions, costs and files together; cheap, so that a changed limit measures nothing again."""
    with np.load(predictions, allow_pickle=False) as stored:
        arrays = dict(stored)
    labels = arrays["labels"]
    outputs = {
        side: {name.removeprefix(f"{side}/"): array for name, array in arrays.items() if name.startswith(f"{side}/")}
        for side in ("original", "final")
    }
    wanted = task_metrics(task)
    main, reason = wanted[0], TARGETS[final.target].unmeasurable() or ""
    scores = {side: metrics.scores_of(main, outputs[side], labels) for side in outputs}
    drop = accuracy.paired_drop(main, scores["original"], scores["final"], limits.confidence)
    sides = {
        "original": _side(
            original, outputs["original"], labels, wanted, costs, 0, costs.memory_original, limits.confidence
        ),
        "final": _side(final, outputs["final"], labels, wanted, costs, 1, costs.memory_final, limits.confidence),
    }
    value = metrics.interval(main, scores["final"], limits.confidence)
    first = costs.latency[0].latency[1] if costs.latency else None
    evidence = Evidence(
        original=_side_evidence(sides["original"], costs.memory_original),
        final=_side_evidence(sides["final"], costs.memory_final),
        drop=None if reason else drop,
        metric=None if reason else value,
        samples=len(labels),
        drop_samples_needed=None
        if limits.drop is None
        else accuracy.samples_needed(main, scores["original"], scores["final"], limits.drop, limits.confidence),
        metric_samples_needed=None
        if limits.metric is None
        else accuracy.samples_to_settle(value, limits.metric, len(labels)),
        speedups={paired.batch: paired.speedup[0] for paired in costs.latency} or None,
        latency_ms=None if first is None else Interval(value=first.p50, low=first.low, high=first.high),
        unmeasured_reason=reason,
    )
    return Outcome(
        original=sides["original"],
        final=sides["final"],
        drop=drop,
        latency=tuple(batch_latency(paired) for paired in costs.latency),
        evidence=evidence,
        test_samples=len(labels),
    )


def _side(
    artifact: Artifact,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    wanted: tuple[Metric, ...],
    costs: Costs,
    index: int,
    peak: Interval | None,
    confidence: float,
) -> Side:
    values = {}
    for metric in wanted:
        found = metrics.interval(metric, metrics.scores_of(metric, outputs, labels), confidence)
        values[metric.name] = MetricValue(
            value=found.value,
            low=found.low,
            high=found.high,
            higher_is_better=metric.higher_is_better,
            kind=metric.kind,
        )
    paired = batch_latency(costs.latency[0]) if costs.latency else None
    macs, parameters = graph_stats.macs_and_parameters(onnx_file.load(artifact.path))
    return Side(
        metrics=values,
        accuracy=values[wanted[0].name].value,
        latency_ms=None if paired is None else (paired.original, paired.final)[index],
        peak_memory_bytes=None if peak is None else round(peak.value),
        file_bytes=artifact.file_bytes,
        macs=macs,
        parameters=parameters,
    )


def _side_evidence(side: Side, peak: Interval | None) -> SideEvidence:
    return SideEvidence(file_bytes=side.file_bytes, macs=side.macs, parameters=side.parameters, peak_memory=peak)
