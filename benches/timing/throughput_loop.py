"""Counts what several threads get done on one session: ``python -m edgesmith.benches.timing.throughput_loop JOB.json``.

A child of `throughput.compare`, started afresh for every restart. The method is that of `timing_loop`, with windows in
place of blocks: for a while N threads call the same session at once, each with inputs bound for itself. Windows stand
in quads A B B A (or B A A B, by chance), one log-ratio of their rates per quad; the baseline is loaded a second time
and compared with itself.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import energy
from .nvml import Watch
from .timing_loop import Runner, feeds_of, open_all, stop_with

SHORTEST_MS, LONGEST_MS = 10.0, 50.0  # of a window, as the time that is given allows
MIN_CALLS = 5  # of every thread in a window: the share of its ends, where not all threads are at work, stays small
MIN_ROUNDS = 5  # a slow model gets at least this many quads, however short the time it was given


class Window(NamedTuple):
    """What was done in a window."""

    rate: float  # calls per second
    calls: int


class Found(NamedTuple):
    """What was found of one case, a list for each session."""

    rates: list[list[float]]  # calls per second of every window
    quads: list[list[float]]  # log of its rate over the baseline's
    joules: list[list[float]]  # of a call, in every window; empty without a counter
    savings: list[list[float]]  # log of the baseline's joules over its own, per quad; NaN where a counter stood still


def run_job(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run one restart.

    Args:
        job: as for `timing_loop.run_job`, and `concurrency`, a list of numbers of threads; `seconds` are for each batch
            size and concurrency; `energy`, the name of a counter or None.

    Returns:
        `rate.BATCH.CONCURRENCY.FILE`: samples per second of each window `(windows,)`; `quads.BATCH.CONCURRENCY.FILE`:
        log of that file's rate over the baseline's `(quads,)`, for files 1, 2, ... and last for the baseline's twin.
        With a counter `joules...` of one sample `(windows,)`, and `savings...`: log of the baseline's over its own.
    """
    rng = np.random.default_rng(job["seed"])
    sessions, watch = open_all(job, rng), Watch(job["targets"])
    shortest = SHORTEST_MS if job["energy"] is None else energy.SHORTEST_MS[job["energy"]]
    counter = None if job["energy"] is None else energy.opened(job["energy"])
    results: dict[str, np.ndarray] = {}
    with np.load(job["feeds"], allow_pickle=False) as arrays:
        cases = [(entry, count) for entry in job["batches"] for count in job["concurrency"]]
        for position in rng.permutation(len(cases)):
            entry, count = cases[position]
            feeds = feeds_of(arrays, entry, job["inputs"])
            runners = [[session.bind(feeds[place % len(feeds)]) for place in range(count)] for session in sessions]
            found = _measure(runners, _milliseconds(job, shortest), job, rng, counter, watch)
            for index in range(len(sessions)):
                key = f"{entry['batch']}.{count}.{index}"
                results[f"rate.{key}"] = entry["batch"] * np.array(found.rates[index])
                results[f"quads.{key}"] = np.array(found.quads[index])
                results[f"joules.{key}"] = np.array(found.joules[index]) / entry["batch"]
                results[f"savings.{key}"] = np.array(found.savings[index])
    for session in sessions:
        session.close()
    return {**results, **watch.results()}


def _milliseconds(job: dict[str, Any], shortest: float) -> float:
    """Length of a window: such that the fewest of them fit into the time that is given, if they may be so short."""
    fewest = 4 * MIN_ROUNDS * len(job["files"])
    return min(max(LONGEST_MS, shortest), max(shortest, 1e3 * float(job["seconds"]) / fewest))


def _measure(
    runners: Sequence[Sequence[Runner]],
    milliseconds: float,
    job: dict[str, Any],
    rng: np.random.Generator,
    counter: energy.Counter | None,
    watch: Watch,
) -> Found:
    lists: list[list[list[float]]] = [[[] for _ in runners] for _ in Found._fields]
    found = Found(*lists)
    with ThreadPoolExecutor(len(runners[0])) as pool:
        for each in runners:
            window(each, pool, milliseconds)  # warms up
        deadline, rounds = time.perf_counter() + job["seconds"], 0
        while rounds < MIN_ROUNDS or time.perf_counter() < deadline:
            stop_with(job["parent"])
            watch.look()
            for contender in rng.permutation(np.arange(1, len(runners))).tolist():
                _quad(runners, contender, pool, milliseconds, rng, counter, found)
            rounds += 1
    watch.look()
    return found


def _quad(
    runners: Sequence[Sequence[Runner]],
    contender: int,
    pool: Executor,
    milliseconds: float,
    rng: np.random.Generator,
    counter: energy.Counter | None,
    found: Found,
) -> None:
    """Four windows of the baseline and one other, added to what was found."""
    rates, joules = {0: 0.0, contender: 0.0}, {0: 0.0, contender: 0.0}
    for index in (0, contender, contender, 0) if rng.integers(2) else (contender, 0, 0, contender):
        before = 0.0 if counter is None else counter.joules()
        done = window(runners[index], pool, milliseconds)
        rates[index] += done.rate
        found.rates[index].append(done.rate)
        if counter is not None:
            used = (counter.joules() - before) / done.calls
            joules[index] += used
            found.joules[index].append(used)
    found.quads[contender].append(math.log(rates[contender] / rates[0]))
    if counter is not None:
        moved = min(joules.values()) > 0
        found.savings[contender].append(math.log(joules[0] / joules[contender]) if moved else math.nan)


def window(runners: Sequence[Runner], pool: Executor, milliseconds: float) -> Window:
    """Calls per second of all runners together, each called again and again by a thread of its own.

    Every thread counts from its first call's begin to its last one's end, so that no part of a call is lost.
    """
    together = threading.Barrier(len(runners))
    counts = [0] * len(runners)

    def work(place: int) -> float:
        run = runners[place]
        try:
            together.wait()
            begun = now = time.perf_counter()
            while now < begun + milliseconds / 1e3 or min(counts) < MIN_CALLS:
                run()
                counts[place] += 1
                now = time.perf_counter()
        except BaseException:  # whatever it was, the other threads must not wait for this one for ever
            counts[place] = sys.maxsize
            raise
        return counts[place] / (now - begun)

    return Window(sum(pool.map(work, range(len(runners)))), sum(counts))


def main(job_path: str) -> None:
    """Run the job and write its results beside it, as the .npz that the job names."""
    job = json.loads(Path(job_path).read_text())
    gc.disable()  # a collection would stop every thread
    results: dict[str, Any] = dict(run_job(job))
    np.savez(job["result"], **results)


if __name__ == "__main__":
    main(sys.argv[1])
