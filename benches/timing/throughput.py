"""Paired throughput under concurrency: samples per second when several threads call one session at once."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...core.errors import UsageError
from ...core.values import Arrays, Artifact, Interval
from . import energy, intervals, latency
from .contender import Contender, kind_of, kinds_of
from .latency import Progress

# Kinds of session that keep one set of buffers: a second call at once would write into the first one's.
_ONE_AT_A_TIME = {"tensorrt": "an engine's session runs one call at a time"}


Runs = Mapping[str, np.ndarray]  # what one restart found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedThroughput:
    """Files measured against the first of them at one batch size and concurrency."""

    batch: int
    concurrency: int  # threads that call the session
    threads: int  # of the session itself
    rates: tuple[Interval, ...]  # samples per second, one per file; bounds are over restarts
    ratios: tuple[Interval, ...]  # rate / the baseline's, one per file after the first
    noise_floor: float  # relative, as in `latency.PairedLatency`
    joules: tuple[Interval, ...] = ()  # of one sample, one per file; empty: not measured
    savings: tuple[Interval, ...] = ()  # the baseline's joules / its own, one per file after the first
    energy_reason: str = ""  # why there are none


def cannot(file: Artifact | Path | Contender, concurrency: Sequence[int]) -> str:
    """Why so many threads cannot call one session of it; empty: they can."""
    return _ONE_AT_A_TIME.get(kind_of(file), "") if max(concurrency, default=0) > 1 else ""


def compare(
    files: Sequence[Artifact | Path | Contender],
    feeds: Mapping[int, Arrays | Sequence[Arrays]],
    concurrency: Sequence[int],
    threads: int = 1,
    *,
    restarts: int = 5,
    seconds: float = 10.0,
    seed: int = 0,
    confidence: float = 0.95,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> list[PairedThroughput]:
    """Count samples per second of every file against the first, at every batch size and concurrency.

    As `latency.compare`, whose arguments and errors these are too, with windows in which `concurrency` threads share a
    session; see `throughput_loop`.

    Args:
        files: see there.
        feeds: the threads take them by turns.
        concurrency: numbers of threads that call a session at once.
        threads: of every session.
        restarts: processes.
        seconds: for each batch size and concurrency, over all restarts together.
        seed: of every random order.
        confidence: of each bound alone.
        timeout: seconds for one restart.
        progress: called after each restart.

    Returns:
        One result per batch size and concurrency, in their order.

    Raises:
        UsageError: no concurrency, or one below 1.
    """
    if not concurrency or min(concurrency) < 1:
        raise UsageError(f"concurrency: numbers of threads from 1 on, got {list(concurrency)}")
    reason = energy.why_not(kinds_of(files))
    runs = latency.restarted(
        "throughput_loop",
        files,
        feeds,
        threads,
        restarts=restarts,
        seconds=seconds,
        seed=seed,
        confidence=confidence,
        timeout=timeout,
        progress=progress,
        concurrency=list(dict.fromkeys(concurrency)),
        energy=None if reason else energy.which(kinds_of(files)),
    )
    cases = [(batch, count) for batch in feeds for count in dict.fromkeys(concurrency)]
    found = [_summary(batch, count, threads, len(files), runs, confidence) for batch, count in cases]
    return [_with_energy(one, len(files), runs, confidence, reason) for one in found]


def _summary(
    batch: int, count: int, threads: int, files: int, runs: Sequence[Runs], confidence: float
) -> PairedThroughput:
    over = functools.partial(_over, runs, f"{batch}.{count}", confidence)
    rates = tuple(over("rate", index) for index in range(files))
    ratios, floor = _ratios([over("quads", index) for index in range(1, files + 1)])
    return PairedThroughput(
        batch=batch, concurrency=count, threads=threads, rates=rates, ratios=ratios, noise_floor=math.expm1(floor)
    )


def _with_energy(
    one: PairedThroughput, files: int, runs: Sequence[Runs], confidence: float, reason: str
) -> PairedThroughput:
    if reason:
        return dataclasses.replace(one, energy_reason=reason)
    case = f"{one.batch}.{one.concurrency}"
    logs = [np.concatenate([run[f"savings.{case}.{index}"] for run in runs]) for index in range(1, files + 1)]
    if not all(np.isfinite(each).all() for each in logs):
        return dataclasses.replace(one, energy_reason="the energy counter stood still")
    over = functools.partial(_over, runs, case, confidence)
    savings, _ = _ratios([over("savings", index) for index in range(1, files + 1)])
    return dataclasses.replace(one, joules=tuple(over("joules", index) for index in range(files)), savings=savings)


def _over(runs: Sequence[Runs], case: str, confidence: float, key: str, index: int) -> Interval:
    medians = np.array([np.median(run[f"{key}.{case}.{index}"]) for run in runs])
    return intervals.median_over_restarts(medians, confidence)


def _ratios(logs: Sequence[Interval]) -> tuple[tuple[Interval, ...], float]:
    """Factors, widened by what the last, the baseline's twin, shows; and that noise floor as a log-ratio."""
    *others, twin = logs
    floor = max(abs(twin.low), abs(twin.high))
    found = (
        Interval(value=math.exp(one.value), low=math.exp(one.low - floor), high=math.exp(one.high + floor))
        for one in others
    )
    return tuple(found), floor
