"""Counts what several threads get done on one session: ``python -m edgesmith.benches.throughput_loop JOB.json``.

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
from typing import Any

import numpy as np

from .timing_loop import Runner, feeds_of, open_all, stop_with

SHORTEST_MS, LONGEST_MS = 10.0, 50.0  # of a window, as the time that is given allows
MIN_CALLS = 5  # of every thread in a window: the share of its ends, where not all threads are at work, stays small
MIN_ROUNDS = 5  # a slow model gets at least this many quads, however short the time it was given


def run_job(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run one restart.

    Args:
        job: as for `timing_loop.run_job`, and `concurrency`, a list of numbers of threads; `seconds` are for each batch
            size and concurrency.

    Returns:
        `rate.BATCH.CONCURRENCY.FILE`: samples per second of each window `(windows,)`; `quads.BATCH.CONCURRENCY.FILE`:
        log of that file's rate over the baseline's `(quads,)`, for files 1, 2, ... and last for the baseline's twin.
    """
    rng = np.random.default_rng(job["seed"])
    sessions = open_all(job, rng)
    results: dict[str, np.ndarray] = {}
    with np.load(job["feeds"], allow_pickle=False) as arrays:
        cases = [(entry, count) for entry in job["batches"] for count in job["concurrency"]]
        for position in rng.permutation(len(cases)):
            entry, count = cases[position]
            feeds = feeds_of(arrays, entry, job["inputs"])
            runners = [[session.bind(feeds[place % len(feeds)]) for place in range(count)] for session in sessions]
            rates, quads = _measure(runners, job["seconds"], rng, job["parent"])
            for index in range(len(sessions)):
                key = f"{entry['batch']}.{count}.{index}"
                results[f"rate.{key}"] = entry["batch"] * np.array(rates[index])
                results[f"quads.{key}"] = np.array(quads[index])
    for session in sessions:
        session.close()
    return results


def _measure(
    runners: Sequence[Sequence[Runner]], seconds: float, rng: np.random.Generator, parent: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Calls per second of every window, and log-ratios per quad, a list for each session."""
    rates: list[list[float]] = [[] for _ in runners]
    quads: list[list[float]] = [[] for _ in runners]
    fewest = 4 * MIN_ROUNDS * (len(runners) - 1)  # windows
    milliseconds = min(LONGEST_MS, max(SHORTEST_MS, 1e3 * seconds / fewest))
    with ThreadPoolExecutor(len(runners[0])) as pool:
        for each in runners:
            window(each, pool, milliseconds)  # warms up
        deadline, rounds = time.perf_counter() + seconds, 0
        while rounds < MIN_ROUNDS or time.perf_counter() < deadline:
            stop_with(parent)
            for contender in rng.permutation(np.arange(1, len(runners))).tolist():
                totals = {0: 0.0, contender: 0.0}
                for index in (0, contender, contender, 0) if rng.integers(2) else (contender, 0, 0, contender):
                    rate = window(runners[index], pool, milliseconds)
                    totals[index] += rate
                    rates[index].append(rate)
                quads[contender].append(math.log(totals[contender] / totals[0]))
            rounds += 1
    return rates, quads


def window(runners: Sequence[Runner], pool: Executor, milliseconds: float) -> float:
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
        except BaseException:
            counts[place] = sys.maxsize  # nobody waits for this thread
            raise
        return counts[place] / (now - begun)

    return sum(pool.map(work, range(len(runners))))


def main(job_path: str) -> None:
    """Run the job and write its results beside it, as the .npz that the job names."""
    job = json.loads(Path(job_path).read_text())
    gc.disable()  # a collection would stop every thread
    results: dict[str, Any] = dict(run_job(job))
    np.savez(job["result"], **results)


if __name__ == "__main__":
    main(sys.argv[1])
