"""`concurrency` of a recipe: original and final are counted, or the reason stands in the report."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.report.report import batch_throughput
from edgesmith.compressor import measuring
from edgesmith.compressor.measure_options import Measure
from edgesmith.compressor.measuring import Costs, costs_from_json, costs_to_json
from edgesmith.compressor.progress import Progress
from edgesmith.core.limits import Limits
from edgesmith.core.task import ArraySplit
from edgesmith.core.values import Artifact
from tests.benches.models import WIDTH, chain


def artifact(path: Path, target: str = "onnxruntime-cpu") -> Artifact:
    keys: dict[str, Any] = {"dialect": "float", "precision": "float32", "inputs": (), "outputs": (), "digest": ""}
    return Artifact(path=path, target=target, **keys)


def asked(pair: list[Artifact], *concurrency: int) -> dict[str, Any]:
    task: Any = SimpleNamespace(test=ArraySplit({"x": np.zeros((8, WIDTH), np.float32)}, np.zeros(8, np.int64)))
    recipe: Any = SimpleNamespace(
        measure=Measure(batch_sizes=(1, 4), seconds=0.05, restarts=2, concurrency=concurrency),
        limits=Limits(drop=0.1, confidence=0.75),
    )
    return measuring._throughput(pair, task, recipe, 1, Progress())


@pytest.mark.alone
def test_every_batch_size_and_concurrency_is_counted(tmp_path: Path) -> None:
    slow, fast = (artifact(chain(tmp_path / f"{layers}.onnx", layers)) for layers in (48, 6))
    found = Costs(**asked([slow, fast], 1, 2))
    assert costs_from_json(costs_to_json(found)) == found
    rows = [batch_throughput(each) for each in found.throughput]
    assert [(each.batch, each.concurrency, each.threads) for each in rows] == [
        (1, 1, 1),
        (1, 2, 1),
        (4, 1, 1),
        (4, 2, 1),
    ]
    for each in rows:
        assert each.ratio.value > 2  # an eighth of the work
        assert each.final.value > each.original.value > 0


def test_not_asked_for_and_not_possible() -> None:
    engine = artifact(Path("a.onnx"), "tensorrt")
    assert asked([engine, engine]) == {"throughput_reason": ""}
    assert asked([engine, engine], 1, 4) == {"throughput_reason": "an engine's session runs one call at a time"}
