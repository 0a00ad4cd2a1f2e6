"""In how many processes a run weighs its files: so many that a limit on memory keeps the confidence it is judged at."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import fresh_process
from edgesmith.compressor import measuring, release_times
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.recipe import Measure
from edgesmith.core.errors import MeasurementError
from edgesmith.core.limits import Limits
from edgesmith.core.task import ArraySplit
from edgesmith.core.values import Artifact

FILE = Artifact(
    path=Path("a.onnx"),
    target="onnxruntime-cpu",
    dialect="float",
    precision="float32",
    inputs=(),
    outputs=(),
    digest="",
)


@pytest.mark.parametrize(("confidence", "processes"), [(0.95, 5), (0.99, 7), (0.75, 2)])
def test_the_smallest_and_the_largest_bound_the_median(
    confidence: float, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of n lie below the median with probability 2**-n; of three that is one in eight, and 95 % was claimed."""
    asked: list[int] = []

    def weighed(files: Any, feed: Any, threads: int = 1, repeats: int = 3) -> None:
        asked.append(repeats)
        raise MeasurementError("weighed enough")

    monkeypatch.setattr(fresh_process, "measure", weighed)
    task: Any = SimpleNamespace(test=ArraySplit({"x": np.zeros((8, 2), np.float32)}, np.zeros(8, np.int64)))
    recipe: Any = SimpleNamespace(measure=Measure(restarts=9), limits=Limits(drop=0.1, confidence=confidence))
    opened: Any = SimpleNamespace(recipe=recipe, pair=SimpleNamespace(task=task, threads=1))
    with pytest.raises(MeasurementError):
        measuring.measure_costs(FILE, FILE, task, recipe, 1, Progress())
    with pytest.raises(MeasurementError):
        release_times._memory(FILE, FILE, opened)
    assert asked == [processes] * 2
    below = np.random.default_rng(0).random((20_000, processes)).max(1) < 0.5
    assert below.mean() < 1 - confidence + 0.005
