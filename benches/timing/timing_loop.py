"""Times several models against each other in one process: ``python -m edgesmith.benches.timing.timing_loop JOB.json``.

A child of `latency.compare`, started afresh for every restart. It imports numpy, the standard library and the session
file of the target only, so that it starts fast and a device can run the very same file.

The method: all sessions loaded once, with fixed threads of one pool that they share, and the same rotating inputs;
blocks of about 3 ms in quads A B B A (or B A A B, by chance), so that a drift of the machine's speed over a quad
cancels; one log-ratio per quad. The baseline is loaded a second time and compared with itself in every round: what that
pair shows is the noise floor.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from .nvml import Watch

BLOCK_MS = 3.0
MIN_ROUNDS = 5  # a slow model gets at least this many quads, however short the time it was given
_WARM_UP_MS = 30.0

Runner = Callable[[], None]


def _open_onnxruntime(path: str, threads: int) -> Any:
    from ...exporters.sessions.ort_session import OnnxRuntimeSession

    return OnnxRuntimeSession(Path(path), threads=threads, shared_pool=True)


def _open_on(device: str) -> Callable[[str, int], Any]:
    def opened(path: str, threads: int) -> Any:
        from ...exporters.sessions.ort_session import OnnxRuntimeSession

        return OnnxRuntimeSession(Path(path), threads=threads, device=device)

    return opened


def _open_openvino(path: str, threads: int) -> Any:
    from ...exporters.sessions.openvino_session import OpenVinoSession

    return OpenVinoSession(Path(path), threads=threads)


def _open_tensorrt(path: str, threads: int) -> Any:
    from ...exporters.engines.engine_open import open_beside

    return open_beside(Path(path))


# Target name -> (path, threads) -> a session with `bind(feed)` and `close()`.
SESSIONS: dict[str, Callable[[str, int], Any]] = {
    "onnxruntime-cpu": _open_onnxruntime,
    "onnxruntime-x86": _open_onnxruntime,
    "onnxruntime-arm": _open_onnxruntime,
    "onnxruntime-cuda": _open_on("cuda"),
    "onnxruntime-tensorrt": _open_on("tensorrt"),
    "onnxruntime-openvino": _open_on("openvino"),
    "openvino": _open_openvino,
    "tensorrt": _open_tensorrt,
}


def opener(kind: str) -> Callable[[str, int], Any]:
    """What opens sessions of a kind: an entry of `SESSIONS`, or what "package.module:function" points at."""
    from ...core.tables import resolve

    return resolve(kind, SESSIONS, "session")


def run_job(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run one restart.

    Args:
        job: `files` (the first is the baseline), `targets` (the kind of each), `threads`, `seconds` per batch size,
            `seed`, `parent` (process id), `inputs` (names), `batches` (of {batch, feeds: count}), `feeds` (path of an
            .npz with keys `BATCH.FEED.INPUT`).

    Returns:
        `latency.BATCH.FILE`: milliseconds of single runs `(runs,)`; `quads.BATCH.FILE`: log of baseline time over
        that file's time `(quads,)`, for files 1, 2, ... and last for the baseline's own twin; and `Watch.results`.
    """
    rng = np.random.default_rng(job["seed"])
    sessions, watch = open_all(job, rng), Watch(job["targets"])
    results: dict[str, np.ndarray] = {}
    with np.load(job["feeds"], allow_pickle=False) as arrays:
        for position in rng.permutation(len(job["batches"])):
            entry = job["batches"][position]
            feeds = feeds_of(arrays, entry, job["inputs"])
            runners = [[session.bind(feed) for feed in feeds] for session in sessions]
            singles, quads = _measure(runners, job["seconds"], rng, job["parent"], watch.look)
            for index in range(len(sessions)):
                results[f"latency.{entry['batch']}.{index}"] = np.array(singles[index]) / 1e6
                results[f"quads.{entry['batch']}.{index}"] = np.array(quads[index])
    for session in sessions:
        session.close()
    return {**results, **watch.results()}


def open_all(job: dict[str, Any], rng: np.random.Generator) -> list[Any]:
    """A session of every file of the job, and last the baseline's twin."""
    paths, kinds = [*job["files"], job["files"][0]], [*job["targets"], job["targets"][0]]
    sessions: list[Any] = [None] * len(paths)
    for index in rng.permutation(len(paths)):  # whoever loads first gets other memory
        sessions[index] = opener(kinds[index])(paths[index], job["threads"])
    return sessions


def feeds_of(arrays: Any, entry: dict[str, int], names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The feeds of one batch size, `entry`, from the stored arrays."""
    return [
        {name: arrays[f"{entry['batch']}.{feed}.{index}"] for index, name in enumerate(names)}
        for feed in range(entry["feeds"])
    ]


def _measure(
    runners: list[list[Runner]],
    seconds: float,
    rng: np.random.Generator,
    parent: int,
    look: Callable[[], None] = lambda: None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Single runs in nanoseconds and log-ratios per quad, a list for each session."""
    counts = [_runs_per_block(run) for run in runners]
    singles: list[list[int]] = [[] for _ in runners]
    quads: list[list[float]] = [[] for _ in runners]
    deadline, rounds = time.perf_counter() + seconds, 0
    while rounds < MIN_ROUNDS or time.perf_counter() < deadline:
        stop_with(parent)
        look()
        for contender in rng.permutation(np.arange(1, len(runners))).tolist():
            totals = {0: 0.0, contender: 0.0}
            for index in (0, contender, contender, 0) if rng.integers(2) else (contender, 0, 0, contender):
                times = _block(runners[index], counts[index], rounds)
                totals[index] += sum(times) / len(times)
                singles[index] += times
            quads[contender].append(math.log(totals[0] / totals[contender]))
        rounds += 1
    look()
    return singles, quads


def _block(runners: list[Runner], count: int, first: int) -> list[int]:
    """Nanoseconds of `count` runs over the rotating inputs."""
    runners[(first - 1) % len(runners)]()  # not timed: brings this model back into the caches the other one filled
    times = []
    for index in range(first, first + count):
        run = runners[index % len(runners)]
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return times


def _runs_per_block(runners: list[Runner]) -> int:
    """Warm up, and say how many runs take about `BLOCK_MS`."""
    count, times = 3, [0]
    while sum(times) < _WARM_UP_MS * 1e6:
        times = _block(runners, count, 0)
        count *= 2
    return max(1, round(BLOCK_MS * 1e6 / float(np.median(times))))


def stop_with(parent: int) -> None:
    """A killed parent takes its measurement with it: it would only disturb the next one."""
    if os.getppid() != parent:
        raise SystemExit("the process that asked for this measurement is gone")


def main(job_path: str) -> None:
    """Run the job and write its results beside it, as the .npz that the job names."""
    job = json.loads(Path(job_path).read_text())
    gc.disable()  # a collection inside a block would be counted as the model's time
    results: dict[str, Any] = dict(run_job(job))
    np.savez(job["result"], **results)


if __name__ == "__main__":
    main(sys.argv[1])
