"""Time, memory and size of several contenders beside each other: files alone, or one model in several runtimes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import MeasurementError
from ...core.values import Arrays, Interval
from . import energy, fresh_process, throughput
from .contender import Contender, kinds_of
from .fresh_process import Arena, FreshProcess, Start
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
class Rate:
    """One contender under one concurrency."""

    batch: int
    concurrency: int
    per_second: Interval  # samples
    ratio: Interval | None  # its own rate / the first one's; None: it is the first
    joules: Interval | None = None  # of one sample; None: see `energy_reason`
    saving: Interval | None = None  # the first one's joules / its own; None: it is the first, or not measured


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
    throughput: tuple[Rate, ...] = ()  # one for each batch size and concurrency
    throughput_reason: str = ""  # why there is none, where it was asked for
    arena: Arena | None = None  # of the runtime, as it counts itself
    arena_reason: str = ""  # why there is none
    device_memory: Interval | None = None  # bytes of the GPU, above the same; None: it runs on none, or see the reason
    device_reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Contenders timed in the same processes, each started in processes of its own."""

    threads: int
    restarts: int
    concurrency: tuple[int, ...]  # threads that called one session; empty: throughput was not asked for
    noise_floor: dict[int, float]  # batch size -> what the first showed against itself; 0.012 is 1.2 %
    rows: tuple[Row, ...]
    clocks: str  # of a GPU: "watched", or "not watched" and why; empty: there was none
    energy_reason: str  # why energy was not measured; empty: it was


def steps(restarts: int = RESTARTS, concurrency: Sequence[int] = ()) -> int:
    """How often `measure` reports progress."""
    return fresh_process.repeats_for(restarts) + restarts * (2 if concurrency else 1)


def for_energy(contenders: Sequence[Contender]) -> tuple[int, ...]:
    """The concurrency that energy is counted with where no throughput is asked for; none without a counter."""
    return () if energy.why_not(kinds_of([one for one in contenders if not one.reason])) else (1,)


def measure(
    contenders: Sequence[Contender],
    feeds: Feeds,
    threads: int = 1,
    *,
    concurrency: Sequence[int] = (),
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
        concurrency: numbers of threads that call one session at once, for throughput; empty: none is measured.
        restarts: fresh timing processes.
        seconds: time to measure for each batch size (and concurrency), over all restarts.
        seed: of every random order.
        progress: called `steps(restarts, concurrency)` times.

    Raises:
        MeasurementError: fewer than two can be measured, or one that is not optional fails.
    """

    def advance(done: int) -> None:
        if progress is not None:
            progress(done, steps(restarts, concurrency))

    tried = [one for one in contenders if not one.reason]
    first, repeats = next(iter(feeds.values()))[0], fresh_process.repeats_for(restarts)
    outcomes = iter(fresh_process.measure(tried, first, threads, repeats, lambda done, _: advance(done)))
    weighed = [(one, None) if one.reason else _tried(one, next(outcomes)) for one in contenders]
    able = [contender for contender, _ in weighed if not contender.reason]
    if len(able) < 2:
        reasons = "; ".join(f"{one.label}: {one.reason}" for one, _ in weighed if one.reason)
        raise MeasurementError(f"a comparison needs two that can be measured here, found {len(able)}; {reasons}")
    together = _together(able, concurrency) if concurrency else []
    paired = compare(
        able,
        feeds,
        threads,
        restarts=restarts,
        seconds=seconds,
        seed=seed,
        progress=lambda done, _: advance(repeats + done),
    )
    rows = [_row(one, fresh, able, paired) for one, fresh in weighed]
    energy_reason = energy.why_not(kinds_of(able))
    if concurrency:
        how: dict[str, Any] = {"restarts": restarts, "seconds": seconds, "seed": seed}
        how["progress"] = lambda done, _: advance(repeats + restarts + done)
        counted = throughput.compare(together, feeds, concurrency, threads, **how)
        energy_reason = counted[0].energy_reason
        rows = _with_throughput(rows, together, [one for one, _ in weighed], counted, concurrency)
    return SideBySide(
        threads=threads,
        restarts=restarts,
        concurrency=tuple(dict.fromkeys(concurrency)),
        noise_floor={result.batch: result.noise_floor for result in paired},
        rows=tuple(rows),
        clocks=paired[0].clocks,
        energy_reason=energy_reason,
    )


def _together(able: Sequence[Contender], concurrency: Sequence[int]) -> list[Contender]:
    reasons = {one.label: throughput.cannot(one, concurrency) for one in able}
    found = [one for one in able if not reasons[one.label]]
    if len(found) < 2:
        said = "; ".join(f"{label}: {reason}" for label, reason in reasons.items() if reason)
        raise MeasurementError(
            f"throughput needs two whose sessions several threads can call, found {len(found)}; {said}; leave out "
            "the concurrency"
        )
    return found


def _with_throughput(
    rows: Sequence[Row],
    together: Sequence[Contender],
    contenders: Sequence[Contender],
    paired: Sequence[throughput.PairedThroughput],
    concurrency: Sequence[int],
) -> list[Row]:
    """The rows with what each does under concurrency, against the first of those that several threads can call."""
    found = []
    for row, one in zip(rows, contenders, strict=True):
        if one in together:
            place = together.index(one)
            found.append(dataclasses.replace(row, throughput=tuple(_rate(each, place) for each in paired)))
        else:
            found.append(dataclasses.replace(row, throughput_reason=one.reason or throughput.cannot(one, concurrency)))
    return found


def _rate(result: throughput.PairedThroughput, place: int) -> Rate:
    return Rate(
        batch=result.batch,
        concurrency=result.concurrency,
        per_second=result.rates[place],
        ratio=result.ratios[place - 1] if place else None,
        joules=result.joules[place] if result.joules else None,
        saving=result.savings[place - 1] if result.savings and place else None,
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
        arena=None if fresh is None else fresh.arena,
        arena_reason="" if fresh is None else fresh.arena_reason,
        device_memory=None if fresh is None else fresh.device_memory,
        device_reason="" if fresh is None else fresh.device_reason,
    )


def _timing(result: PairedLatency, place: int) -> Timing:
    speedup = result.speedup[place - 1] if place else None
    return Timing(batch=result.batch, latency=result.latency[place], speedup=speedup)
