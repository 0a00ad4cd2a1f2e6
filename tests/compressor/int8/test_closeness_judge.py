"""Which output labels are held to, and what the others are held to meanwhile."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.compressor.int8.closeness_judge import Judge, Promise
from edgesmith.compressor.int8.runs import Runs
from edgesmith.core.errors import DataError
from edgesmith.core.task import Metric
from edgesmith.core.values import Arrays

ACCURACY = METRICS["accuracy"]
SCORES = dataclasses.replace(ACCURACY, output="scores")


def judge(metric: Metric, *rows: int) -> tuple[Judge, Path]:
    """Of a network with a state `(1, B, 10)` before its scores `(B, 10)`; the path opens one whose state is spoiled."""

    def load(path: Path, threads: int) -> SimpleNamespace:
        noise = 0.5 if path.name == "changed" else 0.0

        def run(feed: Arrays) -> dict[str, np.ndarray]:
            return {"state": feed["x"][None] * (1 + noise), "scores": feed["x"]}

        return SimpleNamespace(run=run, close=lambda: None)

    x = np.random.default_rng(0).standard_normal((sum(rows), 10)).astype(np.float32)
    feeds = [{"x": part} for part in np.split(x, np.cumsum(rows)[:-1])]
    runs = Runs(feeds=feeds, labels=x.argmax(1))
    return Judge(Path("original"), runs, Promise(metric=metric), load), Path("changed")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [(64, 22), (64, 64)], ids=["a short batch", "whole batches"])
def test_an_output_that_labels_do_not_read_is_kept_close(rows: tuple[int, ...]) -> None:
    made, changed = judge(SCORES, *rows)
    quality = made.quality(changed)
    assert quality.original == quality.changed == 1.0
    assert quality.unread_db == pytest.approx(20 * np.log10(2), abs=1e-3) and not made.keeps(quality)


def test_the_first_output_is_never_passed_over_for_another() -> None:
    """Its rows are another axis: with a short batch it was left out without a word, and the second was scored."""
    made, changed = judge(ACCURACY, 64, 22)
    text = "labels are for rows, and output 'state' of the model has no rows of one shape in all runs"
    with pytest.raises(DataError, match=f"^{text}$"):
        made.quality(changed)
    made, changed = judge(ACCURACY, 64, 64)
    with pytest.raises(DataError, match=r"^metric 'accuracy': 2 outputs for 128 labels; they must be one to one$"):
        made.quality(changed)


def test_an_output_that_cannot_be_joined_is_not_said_to_be_missing() -> None:
    made, changed = judge(dataclasses.replace(ACCURACY, output="state"), 64, 22)
    text = "labels are for rows, and output 'state' of the model has no rows of one shape in all runs"
    with pytest.raises(DataError, match=f"^{text}$"):
        made.quality(changed)
    made, changed = judge(dataclasses.replace(ACCURACY, output="other"), 64, 22)
    with pytest.raises(DataError, match=r"^metric 'accuracy' reads output 'other', but the model has: state, scores$"):
        made.quality(changed)
