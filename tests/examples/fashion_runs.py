"""Recipes on a few hundred real images: how they are run, and what they report."""

import json
import os
import subprocess
import sys
from pathlib import Path

# Real recipes; only the time they take is cut down. The limits are for the whole data and are not judged here, so that
# no second look at the time is asked for, and two restarts, the fewest that 75 % allow, are enough.
# bfloat16 is slow on a CPU without its instructions, which a run of a few steps need not wait for.
QUICK = [
    "measure.seconds=0.3", "distill.epochs=1", "distill.batch_size=32", "distill.mixed_precision=no", "quantize.samples=64",
    "measure.batch_sizes=[4]", "measure.restarts=2", "limits.confidence=0.75", "limits.speedup=0.1",
]  # fmt: skip


def run(recipe: Path, dataset: Path, cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    options = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "edgesmith", "compress", str(recipe), "--out", str(cwd / "run"), *options]
    environment = {**os.environ, "FASHION_MNIST": str(dataset)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def report_of(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode in (0, 3, 4), done.stdout + done.stderr
    found: dict[str, object] = json.loads((folder / "run" / "report.json").read_text())
    return found
