"""Runs one of the measuring programs in a fresh process and brings its failure back as an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ...core.errors import MeasurementError

_TAIL_LINES = 12


def run(program: str, job: dict[str, Any], folder: Path, threads: int, timeout: float) -> str:
    """Run ``python -m PROGRAM JOB.json`` and wait for it.

    Args:
        program: module, with its package.
        job: what it is told, JSON-able; `parent` (this process's id) is added.
        folder: a temporary folder for the job file.
        threads: set for every maths library the child may load.
        timeout: seconds after which the child is killed.

    Returns:
        What it printed.

    Raises:
        MeasurementError: it crashed or took too long; with the end of what it wrote to stderr.
    """
    name = program.rpartition(".")[2]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**job, "parent": os.getpid()}))
    # -P: a numpy.py in the user's folder must not be imported instead of NumPy.
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *safe, "-m", program, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            _, err = child.communicate()
            raise MeasurementError(
                f"{name}: no result after {timeout:g} s, the process was stopped; {_files(job)}{_tail(err)}"
            ) from None
        except BaseException:  # Ctrl-C above all: the child must not go on measuring, whatever ended us
            child.kill()
            raise
    if child.returncode != 0:
        raise MeasurementError(f"{name}: {_ending(child.returncode)}; {_files(job)}{_tail(err)}")
    return out


def _ending(code: int) -> str:
    if code == -9:
        return "the process was killed, most likely for want of memory"
    return f"the process was ended by signal {-code}" if code < 0 else f"the process ended with code {code}"


def _files(job: dict[str, Any]) -> str:
    return f"files: {', '.join(str(file) for file in job.get('files', []))}"


def _tail(text: str) -> str:
    lines = text.strip().splitlines()[-_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines)
