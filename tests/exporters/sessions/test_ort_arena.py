"""ONNX Runtime's arena: a planted tensor is read as what it is, and what a profile does not say is said."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.core.errors import MeasurementError
from edgesmith.exporters.sessions import ort_arena
from edgesmith.exporters.sessions.ort_arena import arena
from tests.benches.models import chain, write


def test_a_planted_tensor_of_40_mb(tmp_path: Path) -> None:
    """x of one number becomes 10 million that a sum is made of: nothing else of the model is larger than a page."""
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["large"]),
        helper.make_node("ReduceSum", ["large", "axis"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([10_000_000], np.int64), "shape"),
        numpy_helper.from_array(np.array([0], np.int64), "axis"),
    ]
    path = write(tmp_path / "large.onnx", nodes, weights, {"x": (TensorProto.FLOAT, [1])}, {"y": [1]})
    found = arena(path, {"x": np.ones(1, np.float32)})
    assert found.used == 40_000_000 + 16 + 4  # two integers of the weights, one float of the sum
    assert found.used <= found.held < 4 * found.used  # it grows by doubling
    assert found == arena(path, {"x": np.ones(1, np.float32)})  # counted, so that it is the same again


def test_what_a_larger_batch_takes_more_is_what_its_layers_give(tmp_path: Path) -> None:
    """Two results of a chain are alive beside each other, one more where the output is made; weights stay as they are."""
    path = chain(tmp_path / "chain.onnx", 4, width=1024)
    one, many = (arena(path, {"x": np.zeros((batch, 1024), np.float32)}) for batch in (1, 1025))
    assert one.used == 4 * 1024 * 4096 + 3 * 4096
    assert many.used == 4 * 1024 * 4096 + 1025 * 3 * 4096
    assert many.held >= many.used


def test_an_onnx_runtime_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chain(tmp_path / "a.onnx", 1)
    monkeypatch.setattr(ort_arena.json, "loads", lambda text: [{"cat": "Node", "args": {"provider": "CPU"}}])
    with pytest.raises(MeasurementError) as caught:
        arena(path, {"x": np.zeros((1, 128), np.float32)})
    assert str(caught.value) == f"ONNX Runtime {onnxruntime.__version__} says nothing of it in a profile; 1.32 does"


@pytest.mark.gpu
def test_on_a_gpu_it_is_that_of_the_gpu(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx", 4, width=1024)
    found = arena(path, {"x": np.zeros((1024, 1024), np.float32)}, device="cuda")
    assert 4 * 1024 * 4096 <= found.used <= found.held
