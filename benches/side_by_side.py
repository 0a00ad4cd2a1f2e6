"""Time, memory and size of several contenders beside each other: files alone, or one model in several runtimes."""

import dataclasses
from collections.abc import Mapping, Sequence

from ..core.errors import MeasurementError
from ..core.values import Arrays, Interval
from . import fresh_process
from .contender import Contender
from .fresh_process import REPEATS, FreshProcess, Start
from .latency import Latency, PairedLatency, Progress, compare

RESTARTS = 5

Feeds = Mapping[int, Sequence[Arrays]]  # batch size -> feeds that take turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """One contender at one batch size."""

    batch: int
    latency: Latency
    speedup: Interval | None  # the first one's time / its own; None: it is the first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One contender; what could not be measured is None or empty, and `reason` says why."""

    label: str
    path: str
    file_bytes: int
    peak_memory: Interval | None  # bytes, above an empty session of ONNX Runtime (a target's own file: of that target)
    held_memory: Interval | None  # bytes, above the same: what stays while the session is kept
    start: Start | None
    timings: tuple[Timing, ...]  # one for each batch size
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Contenders timed in the same processes, each started in processes of its own."""

    threads: int
    restarts: int
    noise_floor: dict[int, float]  # batch size -> what the first showed against itself; 0.012 is 1.2 %
    rows: tuple[Row, ...]


def steps(restarts: int = RESTARTS) -> int:
    """How often `measure` reports progress."""
    return REPEATS + restarts


def measure(
    contenders: Sequence[Contender],
    feeds: Feeds,
    threads: int = 1,
    *,
    restarts: int = RESTARTS,
    seconds: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> SideBySide:
    """Start every contender in fresh processes, then time all of them against the first that can be measured.

    Args:
        contenders: with the same inputs.
        feeds: memory and start are those of the first feed of the first batch size.
        threads: of every session.
        restarts: fresh timing processes.
        seconds: time to measure for each batch size, over all restarts.
        seed: of every random order.
        progress: called `steps(restarts)` times.

    Raises:
        MeasurementError: fewer than two can be measured, or one that is not optional fails.
    """

    def advance(done: int) -> None:
        if progress is not None:
            progress(done, steps(restarts))

    tried = [one for one in contenders if not one.reason]
    first = next(iter(feeds.values()))[0]
    outcomes = iter(fresh_process.measure(tried, first, threads, progress=lambda done, _: advance(done)))
    weighed = [(one, None) if one.reason else _tried(one, next(outcomes)) for one in contenders]
    able = [contender for contender, _ in weighed if not contender.reason]
    if len(able) < 2:
        reasons = "; ".join(f"{one.label}: {one.reason}" for one, _ in weighed if one.reason)
        raise MeasurementError(f"a comparison needs two that can be measured here, found {len(able)}; {reasons}")
    paired = compare(
        able,
        feeds,
        threads,
        restarts=restarts,
        seconds=seconds,
        seed=seed,
        progress=lambda done, _: advance(REPEATS + done),
    )
    return SideBySide(
        threads=threads,
        restarts=restarts,
        noise_floor={result.batch: result.noise_floor for result in paired},
        rows=tuple(_row(one, fresh, able, paired) for one, fresh in weighed),
    )


def _tried(contender: Contender, found: FreshProcess | MeasurementError) -> tuple[Contender, FreshProcess | None]:
    """Starting it was also the trial that tells whether an optional contender runs at all."""
    if isinstance(found, FreshProcess):
        return contender, found
    cause = str(found).strip().splitlines()[-1].strip()
    return dataclasses.replace(contender, reason=f"{contender.label} failed: {cause}"), None


def _row(
    contender: Contender, fresh: FreshProcess | None, able: Sequence[Contender], paired: Sequence[PairedLatency]
) -> Row:
    place = None if contender.reason else able.index(contender)
    timings = () if place is None else tuple(_timing(result, place) for result in paired)
    return Row(
        label=contender.label,
        path=str(contender.file),
        file_bytes=contender.file.stat().st_size,
        peak_memory=None if fresh is None else fresh.peak_memory,
        held_memory=None if fresh is None else fresh.held_memory,
        start=None if fresh is None else fresh.start,
        timings=timings,
        reason=contender.reason,
    )


def _timing(result: PairedLatency, place: int) -> Timing:
    speedup = result.speedup[place - 1] if place else None
    return Timing(batch=result.batch, latency=result.latency[place], speedup=speedup)
