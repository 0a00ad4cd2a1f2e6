"""Starts one model in a fresh process, says what that took: ``python -m edgesmith.benches.timing.fresh_probe JOB``.

A child of `fresh_process.measure`. A process's peak never falls again, and a runtime is loaded once, so every model
needs a process of its own.
"""

import ctypes
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import MeasurementError
from .nvml import GPU_SESSIONS, Gpu
from .timing_loop import opener

_STEADY_SECONDS = 0.1
_FEWEST_CALLS = 5  # after the first, which allocates what later ones reuse


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux: VmHWM starts anew with the program, ru_maxrss would begin at what the parent had when it forked.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sys.platform)


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes; where the system does not say, the peak."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak_bytes()


def held_bytes() -> int:
    """Resident memory that is in use: what the allocator keeps for later goes back to the system first (glibc)."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return resident_bytes()


def forget_peak() -> None:
    """Let the peak begin anew at what is resident now, where the system can (Linux: proc(5), clear_refs)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def maxrss_bytes(maxrss: int, platform: str) -> int:
    """`ru_maxrss` in bytes: macOS gives bytes, every other system kibibytes."""
    return maxrss if platform == "darwin" else maxrss * 1024


def import_runtime(kind: str) -> None:
    """Import what sessions of a kind need, as far as it does not depend on the file: every process does that once."""
    opener(kind)  # "package.module:function": its module, which imports torch
    if kind.startswith("onnxruntime"):
        from ...exporters.sessions import ort_session  # noqa: F401  # its import is what is timed
    elif kind == "openvino":
        from ...exporters.sessions.openvino_session import load_openvino

        load_openvino()


class _DeviceMemory:
    """What of a GPU's memory is in use more than when this was made; nothing for a kind of session on the CPU."""

    def __init__(self, kind: str) -> None:
        self._gpu: Gpu | None = None
        self._reason, self._before = "", 0
        if kind in GPU_SESSIONS:
            try:
                self._gpu = Gpu()
                self._before = self._gpu.memory_bytes()
            except MeasurementError as error:
                self._gpu, self._reason = None, str(error)

    def taken(self) -> dict[str, float | str]:
        """`device_bytes`, or `device_reason` why there are none."""
        if self._gpu is None:
            return {"device_reason": self._reason} if self._reason else {}
        return {"device_bytes": max(0, self._gpu.memory_bytes() - self._before)}


def start(kind: str, path: str, threads: int, feed: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """Open a file, call it for the first time, then again and again.

    Args:
        kind: of session, see `timing_loop.opener`.
        path: what it opens.
        threads: of the session.
        feed: input name -> array `(batch, ...)`; None: one zero, for the empty model.

    Returns:
        Milliseconds `import_ms`, `open_ms`, `first_ms` and `steady_ms` (median of later calls), and the bytes
        `peak_bytes` and `held_bytes`. A session that had to load something that is not the model's says how much with
        `foreign_bytes` and how long with `foreign_seconds`; both are taken off. Of a session on a GPU also
        `device_bytes` (more of its memory in use than before, whoever uses it) or `device_reason` why not, and, where
        the session counts with the GPU's events, `device_ms`: the median of calls on the device alone, and `graph_ms`
        of calls as one CUDA graph, or `graph_reason` why it cannot be one.
    """
    memory = _DeviceMemory(kind)
    begun = time.perf_counter()
    import_runtime(kind)
    imported = time.perf_counter()
    session = opener(kind)(path, threads)
    opened = time.perf_counter()
    own = {session.inputs[0].name: np.zeros(1, np.float32)} if feed is None else feed
    called = time.perf_counter()
    session.run(own)
    answered = time.perf_counter()
    steady = _steady_ms(session, own)
    foreign = getattr(session, "foreign_bytes", 0)
    taken: dict[str, Any] = {
        **memory.taken(),
        "peak_bytes": peak_bytes() - foreign,
        "held_bytes": held_bytes() - foreign,
    }
    return {
        **taken,
        **_on_device(session, own),
        "import_ms": 1e3 * (imported - begun),
        "open_ms": 1e3 * (opened - imported - getattr(session, "foreign_seconds", 0.0)),
        "first_ms": 1e3 * (answered - called),
        "steady_ms": steady,
    }


def _on_device(session: Any, feed: dict[str, np.ndarray]) -> dict[str, float | str]:
    """Milliseconds by the GPU's events; measured last, for a graph takes memory too."""
    if not hasattr(session, "device_ms"):
        return {}
    found: dict[str, float | str] = {"device_ms": statistics.median(session.device_ms(feed))}
    try:
        found["graph_ms"] = statistics.median(session.graph_ms(feed))
    except MeasurementError as error:  # not every layer can be part of a graph
        found["graph_reason"] = str(error)
    return found


def arena(kind: str, path: str, threads: int, feed: dict[str, np.ndarray]) -> dict[str, float | str]:
    """What ONNX Runtime's allocator holds: `held_bytes` and `used_bytes` of `ort_arena.Arena`, or `reason` why not."""
    device = kind.removeprefix("onnxruntime-")
    from ...exporters.sessions import ort_arena

    try:
        found = ort_arena.arena(path, feed, threads, device if device in ("cuda", "tensorrt") else "cpu")
    except MeasurementError as error:
        return {"reason": str(error)}
    return {"held_bytes": found.held, "used_bytes": found.used}


def _steady_ms(session: Any, feed: dict[str, np.ndarray]) -> float:
    """Milliseconds of one call: the median of the later half of those that 0.1 s hold."""
    times: list[int] = []
    deadline = time.perf_counter() + _STEADY_SECONDS
    while len(times) < _FEWEST_CALLS or time.perf_counter() < deadline:
        begun = time.perf_counter_ns()
        session.run(feed)
        times.append(time.perf_counter_ns() - begun)
    return statistics.median(times[len(times) // 2 :]) / 1e6


def main(job_path: str) -> None:
    """Print what is asked for as JSON.

    Job keys: `ask` ("start" or "arena"), `files` (one), `target`, `threads`, `feeds`, `inputs`, `own_feed`.

    The feed of the model under test is loaded in the empty session's process too, so that it cancels out.
    """
    job = json.loads(Path(job_path).read_text())
    with np.load(job["feeds"], allow_pickle=False) as stored:
        feed = {name: stored[f"{index}"] for index, name in enumerate(job["inputs"])}
    kind, path, threads = job["target"], job["files"][0], job["threads"]
    if job["ask"] == "start":
        print(json.dumps(start(kind, path, threads, feed if job["own_feed"] else None)))
    else:
        print(json.dumps(arena(kind, path, threads, feed)))


if __name__ == "__main__":
    main(sys.argv[1])
