"""A GELU between INT8 layers is one kernel of ONNX Runtime, and computes the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import ort_gelu

from ..graphs import U8, graph, kinds, node, optimised, quantized, random, rewritten, run

FEED = {"x": random(2, 8, 6, 6)}
SCALED = [node("Div", "c root", "s"), node("Erf", "s", "e"), node("Add", "e one", "p")]
WRITTEN_OUT = {
    "half at last": [*SCALED, node("Mul", "c p", "m"), node("Mul", "m half", "g")],
    "half at first": [node("Mul", "c half", "h"), *SCALED, node("Mul", "h p", "g")],
    "times the inverse root": [
        node("Mul", "inverse c", "s"), *SCALED[1:], node("Mul", "p c", "m"), node("Mul", "half m", "g"),
    ],
}  # fmt: skip
OTHERS = {
    "another root": {"root": 1.5},
    "another sum": {"one": 0.5},
    "another half": {"half": 0.25},
}


def int8(nodes: list[onnx.NodeProto], **other: float) -> onnx.ModelProto:
    """Two convolutions with a GELU between them, calibrated and quantized."""
    numbers = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5, **other}
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    used = {name for each in copies for name in each.input}
    weights = {"w": random(16, 8, 3, 3, scale=0.2), "v": random(8, 16, 1, 1, scale=0.3)}
    weights |= {name: np.asarray(value, np.float32) for name, value in numbers.items() if name in used}
    layers = [node("Conv", "x w", "c", pads=[1] * 4), *copies, node("Conv", "g v", "y")]
    return quantized(graph(layers, weights, {"x": ["n", 8, "h", "w"]}, {"y": None}), FEED, U8)


@pytest.mark.parametrize("kind", WRITTEN_OUT)
def test_one_kernel_computes_it(kind: str, tmp_path: Path) -> None:
    model = int8(WRITTEN_OUT[kind])
    changed = rewritten(model, ort_gelu.rewrite)
    for each, count in ((model, 0), (changed, 1)):
        onnx_file.save(each, tmp_path / "model.onnx")
        found = optimised(tmp_path / "model.onnx")
        assert (found["Gelu"], found["Erf"], found["QLinearConv"]) == (count, 1 - count, 2)
    np.testing.assert_allclose(run(changed, FEED)["y"], run(model, FEED)["y"], rtol=1e-5, atol=1e-5)
    assert changed.metadata_props == model.metadata_props
    assert {each.name for each in changed.graph.node} < {each.name for each in model.graph.node}
    assert not {"root", "inverse", "one", "half"} & {tensor.name for tensor in changed.graph.initializer}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_gelu_stays(kind: str) -> None:
    model = int8(WRITTEN_OUT["half at last"], **OTHERS[kind])
    assert rewritten(model, ort_gelu.rewrite) == model


def test_what_another_node_reads_stays() -> None:
    model = int8(WRITTEN_OUT["half at last"])
    model.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["n", 16, "h", "w"]))
    assert kinds(rewritten(model, ort_gelu.rewrite))["Erf"] == 1


def test_a_graph_that_does_not_convert_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(ort_gelu.version_converter, "convert_version", refuse)
    model = int8(WRITTEN_OUT["half at last"])
    assert rewritten(model, ort_gelu.rewrite) == model
