"""Runs one model over a bundle's samples: ``python -m edgesmith_device.benches.device.device_predict JOB.json``.

A child of `on_device`: a runtime that crashes takes only this process with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ...core.task import ArraySplit
from ..metrics.accuracy import predict
from ..timing.timing_loop import opener


def main(job_path: str) -> None:
    """Write the outputs `(N, ...)`, as `outputs/NAME`, to the .npz that the job names.

    The job has `files` (one), `target` (a kind of `timing_loop.SESSIONS`), `threads`, `batch`, `reference` (an .npz
    with inputs as `inputs/NAME`) and `result`.
    """
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    with np.load(job["reference"], allow_pickle=False) as stored:
        inputs = {name[len("inputs/") :]: stored[name] for name in stored.files if name.startswith("inputs/")}
    session = opener(job["target"])(job["files"][0], job["threads"])
    try:
        outputs: dict[str, Any] = predict(session, ArraySplit(inputs), job["batch"])
    finally:
        session.close()
    np.savez(job["result"], **{f"outputs/{name}": array for name, array in outputs.items()})


if __name__ == "__main__":
    main(sys.argv[1])
