"""Recipes on a few hundred real images: how they are run, and what they report."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from edgesmith.cli import main
from tests.quick import BRIEF

# Real recipes; only the time they take is cut down. The limits are for the whole data and are not judged here, so that
# no second look at the time is asked for, and two restarts, the fewest that 75 % allow, are enough.
# bfloat16 is slow on a CPU without its instructions, which a run of a few steps need not wait for.
QUICK = (
    *BRIEF,
    "--set=measure.batch_sizes=[4]",
    "--set=distill.epochs=1",
    "--set=distill.batch_size=32",
    "--set=distill.mixed_precision=no",
    "--set=quantize.samples=64",
    "--set=limits.speedup=0.1",
)


def run(recipe: Path, dataset: Path, cwd: Path, *options: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.chdir(cwd)
        patch.setenv("FASHION_MNIST", str(dataset))
        code = main(["compress", str(recipe), "--out", str(cwd / "run"), *options])
    return code, printed.getvalue()


def report_of(folder: Path, done: tuple[int, str]) -> dict[str, object]:
    assert done[0] in (0, 3, 4), done[1]
    found: dict[str, object] = json.loads((folder / "run" / "report.json").read_text())
    return found
