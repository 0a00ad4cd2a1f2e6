"""Recovery and per-tensor weights as keys of the quantize stage."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.recipe import from_mapping
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core import digest
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.targets import onnxruntime_cpu
from tests.compressor.int8.depthwise import DIALECT, Digits, rescaled


@pytest.fixture(autouse=True)
def with_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 8 bits on every machine; what they compute is asked of a session that does not saturate."""
    monkeypatch.setattr(onnxruntime_cpu, "this_cpu", lambda: "x86-vnni")


@pytest.fixture
def broken(depthwise: Digits, tmp_path: Path) -> Graph:
    path = tmp_path / "broken.onnx"
    onnx_file.save(rescaled(depthwise.model, 16), path)
    return Graph(path=path, digest=digest.of_file(path))


def written(result: Graph) -> onnx.ModelProto:
    assert result.params is not None
    return qdq.write_qdq(onnx_file.load(result.path), result.params, DIALECT)


def test_the_stage_recovers_what_one_scale_per_tensor_lost(broken: Graph, depthwise: Digits, context: Context) -> None:
    coarse = Quantize(id="q", weights="per-tensor", calibrator="min-max", samples=128)
    names = ("bias-correction", "equalize")
    lost = coarse.run(broken, context)
    recovered = dataclasses.replace(coarse, recover=names).run(broken, context)
    assert lost.params is not None and recovered.params is not None
    assert {p.axis for p in recovered.params.values()} == {None}
    assert set(recovered.params) == set(lost.params)
    original = depthwise.accuracy(depthwise.model)
    loss, left = (original - depthwise.accuracy(written(result)) for result in (lost, recovered))
    assert loss > 0.3
    assert left < 0.1 * loss
    assert context.notes[-2:] == ["equalized 7 pairs of layers", "8 layers recovered one by one on 4 batches"]


def test_without_recovery_the_graph_stays_as_it_was(broken: Graph, context: Context) -> None:
    result = Quantize(id="q", samples=32).run(broken, context)
    assert onnx_file.load(result.path) == canonicalise(onnx_file.load(broken.path))
    assert context.notes == [
        "32 samples of the 'train' split, calibrator mse, 17 tensors",
        "warning: all samples came as one batch, which cannot tell whether more would move the ranges; give more batches",
    ]


def test_rounded_weights_reach_the_file(broken: Graph, context: Context) -> None:
    """What the writer rounds is what was learned: every weight a whole number of steps of the stored scale."""
    result = Quantize(id="q", samples=64, recover=("equalize", "round")).run(broken, context)
    assert result.params is not None
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx_file.load(result.path).graph.initializer
    }
    for name, params in result.params.items():
        if params.axis is not None:
            scale = np.expand_dims(params.scale, tuple(i for i in range(weights[name].ndim) if i != params.axis))
            np.testing.assert_allclose(weights[name] / scale, np.rint(weights[name] / scale), atol=1e-3)


def test_names_are_checked_before_any_work(task: Task) -> None:
    with pytest.raises(RecipeError) as raised:
        Quantize(id="q", recover=("rond",)).check(task, "stages[0] 'q'")
    assert str(raised.value) == (
        "stages[0] 'q'.recover: unknown 'rond'; did you mean 'round'? known: bias-correction, equalize, round, smooth"
    )


def test_a_recipe_names_them() -> None:
    stage = {"use": "quantize", "recover": ["equalize", "round"], "weights": "per-tensor"}
    recipe = from_mapping({"task": "t.py", "stages": [stage], "limits": {"drop": 0.1}}, folder=Path())
    assert recipe.stages[0] == Quantize(id="quantize", recover=("equalize", "round"), weights="per-tensor")
    bad = {"task": "t.py", "stages": [{**stage, "weights": "per-row"}], "limits": {"drop": 0.1}}
    with pytest.raises(RecipeError) as raised:
        from_mapping(bad, folder=Path())
    assert str(raised.value) == (
        "recipe: stages[0].weights: input should be 'per-channel' or 'per-tensor', got \"per-row\""
    )
