"""What a run found, as values and as `report.json` (documented in docs/report-schema.md)."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from ...calibration.ranges import TensorRange
from ...core.errors import ArtifactError, ContractError
from ...core.ledger import LedgerEntry
from ...core.limits import LimitResult, Status
from ...core.values import Interval
from ..gates.judge import worst_batch
from ..metrics.flips import CalibrationError, Flips
from ..metrics.groups import GroupLoss
from ..timing.environment import Description
from ..timing.fresh_process import Arena, Start
from ..timing.latency import Latency, PairedLatency
from ..timing.throughput import PairedThroughput
from .int8_report import Decision, Trial

SCHEMA: Literal["edgesmith.report/1"] = "edgesmith.report/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One metric of one model on the test split."""

    value: float
    low: float
    high: float
    higher_is_better: bool
    kind: Literal["proportion", "mean", "statistic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricSource:
    """What computes the main metric, whatever it is called."""

    table: str | None  # its name in `METRICS`; None: the task's own code
    output: str | None  # of the model, that it reads; None: the first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Milliseconds of one batch."""

    p50: float
    p90: float | None = None  # None: too few calls for it; p99 and p99.9 likewise
    p99: float | None = None
    p999: float | None = None
    calls: int = 0
    quantiles: tuple[tuple[float, float], ...] = ()  # (share of the calls, ms that they took at most), ascending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One model, original or final, as the target runs it. None: not measured."""

    metrics: Mapping[str, MetricValue]
    accuracy: float  # the main metric again, whatever its name
    latency_ms: Percentiles | None  # at the first batch size
    peak_memory_bytes: int | None
    file_bytes: int
    macs: int | None
    parameters: int | None
    held_memory_bytes: int | None = None
    start: Start | None = None  # in fresh processes, at the first batch size
    joules: Interval | None = None  # of one sample, at the first batch size
    arena: Arena | None = None  # of the runtime, at the first batch size
    arena_reason: str = ""  # why there is none, where memory was measured
    device_memory_bytes: int | None = None  # of the GPU; None: it runs on none, or see the reason
    device_reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How many times faster the final model is; paired, `low` and `high` widened by the noise floor."""

    batch: int
    median: float
    low: float
    high: float
    noise_floor: float  # relative


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLatency:
    """Original against final at one batch size."""

    batch: int
    threads: int
    original: Percentiles
    final: Percentiles
    speedup: SpeedUp
    clocks: str = ""  # of a GPU: "watched", or "not watched" and why; empty: there was none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """Samples per second of both when so many threads call one session at once; bounds are over restarts."""

    batch: int
    concurrency: int
    threads: int  # of the session itself
    original: Interval
    final: Interval
    ratio: Interval  # final / original, paired, widened by the noise floor
    noise_floor: float  # relative


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineResult:
    """A TensorRT engine that was built from an artefact."""

    path: str  # relative to the run directory
    tool: str  # "tensorrt" or "tensorrt-rtx"
    version: str
    proves: str  # what it proves, and what not
    precision: Literal["as-is", "float16"]
    weights_bytes: int | None  # as the tool says; None: it says nothing
    file_bytes: int
    digest: str
    seconds: float  # of the build


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArtifactResult:
    """A file that was written; `reason` says why one was not measured, and is empty where it was."""

    target: str
    dialect: str
    precision: Literal["float32", "int8"]
    path: str  # relative to the run directory
    digest: str
    file_bytes: int
    measured: bool
    reason: str = ""
    layers: tuple[Decision, ...] = ()  # which of them run in INT8 and why; empty: the graph was not quantized
    ranges: tuple[TensorRange, ...] = ()  # of the activations that were calibrated
    tried: tuple[Trial, ...] = ()  # INT8 forms on the way to this one; empty: the graph was not quantized
    engine: EngineResult | None = None  # None: none was built
    device_command: str = ""  # builds the engine on the device, in the folder of the file; empty: see the note
    device_note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a run concludes and what it rests on."""

    task: str
    target: str
    verdict: Status
    confidence: float  # of each bound alone, in every interval here
    main_metric: str
    test_samples: int
    limits: tuple[LimitResult, ...]
    original: Side  # what `against` names
    final: Side
    drop: Interval  # main metric, original minus final in its own unit; positive is worse
    speedup: SpeedUp | None  # at the worst batch size; None: not measured
    latency: tuple[BatchLatency, ...]
    guilty_stage: str | None  # lost most of the main metric; None: nothing was lost
    stages: tuple[LedgerEntry, ...]  # on validation data, the original first
    artifacts: tuple[ArtifactResult, ...]
    environment: Description
    unmeasured_reason: str = ""  # why latency and memory are None
    same_file: bool = (
        False  # what was judged is the original's own file, byte for byte: nothing that was tried is faster
    )
    metric_source: MetricSource | None = None  # of the main metric; None: by a version that did not say
    old_metric: str | None = None  # of the task that the model could do before, among the metrics; None: there is none
    groups: tuple[GroupLoss, ...] = ()  # classes and slices of the test split
    flips: Flips | None = None  # None: answers are not right or wrong
    calibration_error: CalibrationError | None = None  # None: the output is not one score per class
    against: str = "original"  # or the id of the stage that the final model is judged against
    test_digest: str = ""  # of the test split, as far as it is held in memory; empty: by a version that kept none
    calibration_digest: str = ""  # of the split that the task calibrates with, likewise; empty: nothing is quantized
    energy_saving: Interval | None = None  # joules of the original / of the final model, paired; None: not measured
    energy_reason: str = ""  # why not
    throughput: tuple[Throughput, ...] = ()  # at every batch size and concurrency that the recipe names
    throughput_reason: str = ""  # why there is none, where it was asked for
    predictions: str = "predictions.npz"  # of both sides, beside this report
    schema: Literal["edgesmith.report/1"] = SCHEMA


def percentiles(latency: Latency) -> Percentiles:
    """What a report keeps of it."""
    return Percentiles(**{field.name: getattr(latency, field.name) for field in dataclasses.fields(Percentiles)})


def batch_latency(paired: PairedLatency, contender: int = 0) -> BatchLatency:
    """One batch size of `latency.compare`, for the file at `contender` after the baseline."""
    speedup = paired.speedup[contender]
    return BatchLatency(
        batch=paired.batch,
        threads=paired.threads,
        original=percentiles(paired.latency[0]),
        final=percentiles(paired.latency[contender + 1]),
        speedup=SpeedUp(
            batch=paired.batch,
            median=speedup.value,
            low=speedup.low,
            high=speedup.high,
            noise_floor=paired.noise_floor,
        ),
        clocks=paired.clocks,
    )


def batch_throughput(paired: PairedThroughput) -> Throughput:
    """One batch size and concurrency of `throughput.compare` of two files."""
    (original, final), (ratio,) = paired.rates, paired.ratios
    return Throughput(
        batch=paired.batch,
        concurrency=paired.concurrency,
        threads=paired.threads,
        original=original,
        final=final,
        ratio=ratio,
        noise_floor=paired.noise_floor,
    )


def worst_speedup(latency: tuple[BatchLatency, ...]) -> SpeedUp | None:
    """The speed-up at the batch size where it is smallest; None where nothing was measured."""
    found = {entry.batch: entry.speedup for entry in latency}
    if not found:
        return None
    intervals = {batch: Interval(value=up.median, low=up.low, high=up.high) for batch, up in found.items()}
    return found[worst_batch(intervals)]


def to_json(report: Report) -> str:
    """The text of `report.json`; `schema` stands first.

    Raises:
        ContractError: a number is NaN or infinite, which JSON has no word for.
    """
    tree = dataclasses.asdict(report)
    if bad := _not_finite(tree, "report"):
        raise ContractError(f"{bad} cannot stand in a report; leave out (None) what was not measured")
    return json.dumps({"schema": tree.pop("schema"), **tree}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: str, source: str = "report.json") -> Report:
    """Read a report back.

    Args:
        text: what `to_json` wrote.
        source: stands in front of an error.

    Raises:
        ArtifactError: not JSON, another schema, NaN, or a field that is missing or of the wrong type. A field it
            does not know is passed over: later versions of the same schema may add some.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{source}: not JSON: {error}") from error
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(f"{source}: schema is {schema!r}, this version reads '{SCHEMA}'")
    if bad := _not_finite(tree, "report"):
        raise ArtifactError(f"{source}: {bad} is no number; the report was changed after it was written")
    try:
        return _READER.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{source}: {where}: {first['msg']}") from error


def _not_finite(value: Any, where: str) -> str:
    """The first number that is NaN or infinite and its place, `report.stages.2.accuracy: nan`; empty: there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where}: {value}"
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(filter(None, (_not_finite(child, f"{where}.{key}") for key, child in pairs)), "")


_READER = pydantic.TypeAdapter(Report)
