"""Loads one model, runs it a few times, prints the peak memory: ``python -m edgesmith.benches.memory_probe JOB.json``.

A child of `memory.peak_memory`. A process's peak never falls again, so every model needs a process of its own.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np

from .timing_loop import opener

_RUNS = 3  # the first allocates what later ones reuse; a few show that it stays so


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


def forget_peak() -> None:
    """Let the peak begin anew at what is resident now, where the system can (Linux: proc(5), clear_refs)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def maxrss_bytes(maxrss: int, platform: str) -> int:
    """`ru_maxrss` in bytes: macOS gives bytes, every other system kibibytes."""
    return maxrss if platform == "darwin" else maxrss * 1024


def main(job_path: str) -> None:
    """Print the peak after a few runs; job keys: `files` (one), `target`, `threads`, `feeds`, `inputs`, `own_feed`.

    The feed of the model under test is loaded in the empty session's process too, so that it cancels out. A session
    that had to load something that is not the model's says how much with `foreign_bytes`.
    """
    job = json.loads(Path(job_path).read_text())
    with np.load(job["feeds"], allow_pickle=False) as stored:
        feed = {name: stored[f"{index}"] for index, name in enumerate(job["inputs"])}
    session = opener(job["target"])(job["files"][0], job["threads"])
    own = feed if job["own_feed"] else {session.inputs[0].name: np.zeros(1, np.float32)}
    for _ in range(_RUNS):
        session.run(own)
    print(peak_bytes() - getattr(session, "foreign_bytes", 0))


if __name__ == "__main__":
    main(sys.argv[1])
