"""What a bundle measured on a device, as it comes back: `result.json` of `on_device`, checked as a stranger's file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from ...core.errors import ArtifactError
from ...core.values import Interval

DEVICES = "devices"  # in the run directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The main metric of both sides on the bundled samples, there and (`reference`) where the run was."""

    original: Interval
    final: Interval
    drop: Interval  # paired; positive is worse
    reference: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """One output of one side against the reference output."""

    side: Literal["original", "final"]
    output: str
    max_abs: float
    snr_db: float | None  # None: equal, or no signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of one batch; `low` and `high` bound the median over restarts."""

    p50: float
    p90: float | None = None  # None: too few calls for it; p99 and p99.9 likewise
    p99: float | None = None
    low: float
    high: float
    p999: float | None = None  # None also of a bundle of a version that did not say
    calls: int = 0
    quantiles: tuple[tuple[float, float], ...] = ()  # (share of the calls, ms that they took at most), ascending


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedSpeed:
    """How many times faster the final model is, widened by the noise floor (relative)."""

    value: float
    low: float
    high: float
    noise_floor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Original against final at one batch size."""

    batch: int
    threads: int
    original: Times
    final: Times
    speedup: PairedSpeed
    clocks: str = ""  # of a GPU: "watched", or why not; empty: there was none


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A TensorRT engine that was built there."""

    tool: str
    version: str
    seconds: float
    file_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceModel:
    """One target's file; what follows `reason` is empty where it was not measured."""

    target: str
    dialect: str
    precision: str
    judged: bool
    file_bytes: int
    measured: bool
    reason: str
    accuracy: Accuracy | None = None  # None: the metric is the task's own code, which does not travel
    agreement: Mapping[str, float | None] = dataclasses.field(default_factory=dict)  # share of equal top classes
    parity: tuple[Parity, ...] = ()
    latency: tuple[BatchTimes, ...] = ()
    engines: Mapping[str, BuiltEngine] = dataclasses.field(default_factory=dict)
    digest: str = ""  # SHA-256 of the file; empty: by a bundle of a version that did not say


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceResult:
    """Everything that was measured on one device."""

    bundle: str  # SHA-256 of the bundle's manifest
    task: str
    metric: str
    higher_is_better: bool
    samples: int
    confidence: float
    settings: Mapping[str, Any]
    device: Mapping[str, Any]
    models: tuple[DeviceModel, ...]
    schema: Literal["edgesmith.device/1"] = "edgesmith.device/1"

    @property
    def judged(self) -> DeviceModel:
        """The file of the target that the run is judged on."""
        return next(model for model in self.models if model.judged)


def from_json(text: str, source: str) -> DeviceResult:
    """Read a result.

    Raises:
        ArtifactError: not one of this schema.
    """
    try:
        found = _READER.validate_json(text, strict=True)
        json.dumps(dataclasses.asdict(found), allow_nan=False)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{source}: not a result of schema 'edgesmith.device/1': {where}: {first['msg']}"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{source}: a number in it is not finite") from error
    if sum(model.judged for model in found.models) != 1:
        raise ArtifactError(f"{source}: names no judged model, or several")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """What is kept under `devices/` of a run directory."""

    results: Mapping[str, DeviceResult] = dataclasses.field(default_factory=dict)  # address -> result
    unreadable: tuple[str, ...] = ()  # one sentence for each file that is none


def kept(run: Path) -> Devices:
    """The results in a run directory by the devices' addresses; a file that cannot be read is named."""
    results: dict[str, DeviceResult] = {}
    unreadable = []
    for path in sorted((run / DEVICES).glob("*.json")):
        try:
            text = path.read_text(encoding="utf-8")
            result = from_json(text, f"{DEVICES}/{path.name}")
            results[str(json.loads(text).get("url") or path.stem)] = result
        except ArtifactError as error:
            unreadable.append(str(error))
        except (OSError, UnicodeDecodeError) as error:
            unreadable.append(f"{DEVICES}/{path.name}: cannot be read: {getattr(error, 'strerror', error)}")
    return Devices(results=results, unreadable=tuple(unreadable))


_READER: pydantic.TypeAdapter[DeviceResult] = pydantic.TypeAdapter(DeviceResult)
