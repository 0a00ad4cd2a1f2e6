"""Paired latency of models in one target's runtime: how long one batch takes, and how many times faster one is.

Sequential timing on a shared machine shows false speed-ups of 3 to 34 %; ABBA quads in one process show about 1 %.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ...core.errors import DataError, UsageError, VoidError
from ...core.files import storage_errors
from ...core.task import Split
from ...core.values import Arrays, Artifact, Interval
from . import child, intervals
from .contender import Contender, kinds_of, path_of
from .nvml import named

Progress = Callable[[int, int], None]  # (restarts done, restarts in all)
# For a choice or a figure that guides: nothing is claimed, so that fewer restarts do, and most of the time is theirs.
GUIDE: Mapping[str, Any] = {"restarts": 3, "confidence": 0.8}
# Shares of the calls that draw their distribution: both ends, and the tail more closely.
SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
_ROTATE = 4  # inputs that take turns, so that no run finds its own input in the cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one batch, over all runs; `low` and `high` bound the median from restart to restart."""

    p50: float
    low: float
    high: float
    p90: float | None = None  # None: too few calls for it, see `intervals.enough_calls`; p99 and p99.9 likewise
    p99: float | None = None
    p999: float | None = None
    calls: int = 0  # single calls that all of this is of
    quantiles: tuple[tuple[float, float], ...] = ()  # (share of the calls, ms that they took at most), ascending


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedLatency:
    """Files measured against the first of them at one batch size."""

    batch: int
    threads: int
    restarts: int
    latency: tuple[Latency, ...]  # one per file; the first is the baseline
    speedup: tuple[Interval, ...]  # baseline time / file time, one per file after the first
    noise_floor: float  # relative: the largest "speed-up" that the baseline showed against its own twin, 0.012 is 1.2 %
    clocks: str = ""  # of a GPU: "watched", or why not; empty: there was none


def compare(
    files: Sequence[Artifact | Path | Contender],
    feeds: Mapping[int, Arrays | Sequence[Arrays]],
    threads: int = 1,
    *,
    restarts: int = 5,
    seconds: float = 10.0,
    seed: int = 0,
    confidence: float = 0.95,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> list[PairedLatency]:
    """Time every file against the first, at every batch size.

    Each restart is a fresh process with its own load order, batch order and quad order. Its median log-ratio is one
    observation; the interval is bootstrapped over restarts and widened on both sides by the noise floor.

    Args:
        files: the baseline, then one or more others with the same inputs; of one target, unless each is a contender
            that names its runtime.
        feeds: batch size -> one feed or several that take turns, each input name -> array `(batch, ...)`.
        threads: of every session.
        restarts: processes; at least 5 at confidence 0.95.
        seconds: time to measure for each batch size, over all restarts together.
        seed: of every random order.
        confidence: of each bound alone.
        timeout: seconds for one restart.
        progress: called after each restart.

    Returns:
        One result per batch size, in the order of `feeds`.

    Raises:
        UsageError: too few files or restarts.
        DataError: feeds with different inputs.
        MeasurementError: a target that cannot be timed here, a process that crashed or took too long.
        VoidError: the GPU was slowed down in as many runs as were wanted.
    """
    runs = restarted(
        "timing_loop",
        files,
        feeds,
        threads,
        restarts=restarts,
        seconds=seconds,
        seed=seed,
        confidence=confidence,
        timeout=timeout,
        progress=progress,
    )
    return [_summary(batch, threads, len(files), runs, confidence) for batch in feeds]


def restarted(
    program: str,
    files: Sequence[Artifact | Path | Contender],
    feeds: Mapping[int, Arrays | Sequence[Arrays]],
    threads: int,
    *,
    restarts: int,
    seconds: float,
    seed: int,
    confidence: float,
    timeout: float,
    progress: Progress | None,
    **more: Any,
) -> list[dict[str, np.ndarray]]:
    """What a measuring program found in each of its restarts; arguments and errors are those of `compare`.

    Args:
        program: module in this folder that takes the job of `timing_loop.run_job`.
        more: for its job.
    """
    kinds = _check(files, restarts, confidence)
    paths = [str(path_of(file)) for file in files]
    rng = np.random.default_rng(seed)
    runs: list[dict[str, np.ndarray]] = []
    with tempfile.TemporaryDirectory(prefix="edgesmith-latency-") as name:
        folder = Path(name)
        job = {"files": paths, "targets": kinds, "threads": threads, "seconds": seconds / restarts, **more}
        with storage_errors(folder):
            job.update(_write_feeds(feeds, folder), result=str(folder / "result.npz"))
        voided = 0
        while len(runs) < restarts:
            child.run(f"{__package__}.{program}", {**job, "seed": int(rng.integers(2**31))}, folder, threads, timeout)
            with np.load(folder / "result.npz", allow_pickle=False) as arrays:
                run = dict(arrays)
            if run["slowdowns"]:
                voided += 1
                _check_void(int(run["slowdowns"]), voided, len(runs), restarts)
                continue
            runs.append(run)
            if progress is not None:
                progress(len(runs), restarts)
    return runs


def rotating_feeds(split: Split, batch_sizes: Sequence[int], rotate: int = _ROTATE) -> dict[int, list[Arrays]]:
    """Real inputs for `compare`: for every batch size up to `rotate` feeds; a short split is gone through again."""
    return {
        batch: [
            split.batch(np.arange(turn * batch, (turn + 1) * batch) % len(split))[0]
            for turn in range(max(1, min(rotate, len(split) // batch)))
        ]
        for batch in batch_sizes
    }


def _check(files: Sequence[Artifact | Path | Contender], restarts: int, confidence: float) -> list[str]:
    if len(files) < 2:
        raise UsageError(f"a paired measurement needs at least 2 files, got {len(files)}")
    fewest = intervals.enough_restarts(confidence)
    if restarts < fewest:
        raise UsageError(
            f"restarts: {restarts} cannot give an interval at {confidence:.0%} confidence; use at least {fewest}"
        )
    return kinds_of(files)


def _check_void(slowdowns: int, voided: int, good: int, restarts: int) -> None:
    """A run while the GPU was slowed down is void and done again; as many void ones as were wanted are enough."""
    if voided >= restarts:
        raise VoidError(
            f"the GPU was slowed down ({named(slowdowns)}) in {voided} of {voided + good} runs, which says nothing of "
            "the models, so that nothing is proven; cool it, or lock clocks that it can keep (nvidia-smi "
            "--lock-gpu-clocks=MIN,MAX), and run the same command again"
        )


def _write_feeds(feeds: Mapping[int, Arrays | Sequence[Arrays]], folder: Path) -> dict[str, object]:
    """Store the feeds as one .npz; input names may hold any character, so that keys are numbers."""
    lists: dict[int, list[Arrays]] = {
        batch: [feed] if isinstance(feed, Mapping) else list(feed) for batch, feed in feeds.items()
    }
    if not lists or not all(lists.values()):
        raise DataError("a measurement needs at least one batch size, and inputs for each")
    names = list(next(iter(lists.values()))[0])
    arrays: dict[str, Any] = {}
    for batch, several in lists.items():
        for turn, feed in enumerate(several):
            if set(feed) != set(names):
                raise DataError(f"batch {batch}: inputs {sorted(feed)} differ from {sorted(names)}")
            arrays.update({f"{batch}.{turn}.{index}": feed[name] for index, name in enumerate(names)})
    np.savez(folder / "feeds.npz", **arrays)
    batches = [{"batch": batch, "feeds": len(several)} for batch, several in lists.items()]
    return {"feeds": str(folder / "feeds.npz"), "inputs": names, "batches": batches}


def _summary(
    batch: int, threads: int, files: int, runs: Sequence[Mapping[str, np.ndarray]], confidence: float
) -> PairedLatency:
    medians = [_medians(runs, f"quads.{batch}.{index}") for index in range(1, files + 1)]
    twin = intervals.median_over_restarts(medians.pop(), confidence)
    floor = max(abs(twin.low), abs(twin.high))
    return PairedLatency(
        batch=batch,
        threads=threads,
        restarts=len(runs),
        latency=tuple(_latency(runs, f"latency.{batch}.{index}", confidence) for index in range(files)),
        speedup=tuple(_speedup(logs, floor, confidence) for logs in medians),
        noise_floor=math.expm1(floor),
        clocks=str(runs[0]["clocks"]),
    )


def _speedup(logs: np.ndarray, floor: float, confidence: float) -> Interval:
    found = intervals.median_over_restarts(logs, confidence)
    return Interval(value=math.exp(found.value), low=math.exp(found.low - floor), high=math.exp(found.high + floor))


def _latency(runs: Sequence[Mapping[str, np.ndarray]], key: str, confidence: float) -> Latency:
    calls = np.concatenate([run[key] for run in runs])
    shares = [
        share for share in SHARES if not 0.5 < share < 1 or len(calls) >= intervals.enough_calls(share, confidence)
    ]
    at = dict(zip(shares, np.quantile(calls, shares).tolist()))
    p50 = at[0.5]
    bounds = intervals.median_over_restarts(_medians(runs, key), confidence)
    return Latency(
        p50=p50,
        p90=at.get(0.9),
        p99=at.get(0.99),
        low=min(bounds.low, p50),
        high=max(bounds.high, p50),
        p999=at.get(0.999),
        calls=len(calls),
        quantiles=tuple(at.items()),
    )


def _medians(runs: Sequence[Mapping[str, np.ndarray]], key: str) -> np.ndarray:
    return np.array([np.median(run[key]) for run in runs])
