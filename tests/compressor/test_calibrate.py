"""Ranges for all that INT8 needs, and what has none."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.compressor.calibrate import calibrate
from edgesmith.core.errors import QuantizationError


def rows(nodes: list[onnx.NodeProto], outputs: str = "y", **weights: np.ndarray) -> onnx.ModelProto:
    """A graph over rows `(n, 4)`; the nodes are named after what they write."""
    for node in nodes:
        node.name = f"n_{node.output[0]}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, results, tensors)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


EYE = np.eye(4, dtype=np.float32)
FEEDS = [{"x": np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)}, {"x": np.array([[4.0, 0.0, 0.0, 0.0]], np.float32)}]


def test_every_tensor_that_needs_a_range_has_one() -> None:
    nodes = [
        node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r u", "z"),
        node("Flatten", "r", "f"), node("Gemm", "f v", "y"),
    ]  # fmt: skip
    model = rows(nodes, "y z", w=EYE, u=EYE, v=EYE)
    found = calibrate(model, FEEDS, "min-max")
    assert set(found.params) == {"w", "u", "v", "x", "r"} and not found.keep_float
    assert (found.params["x"].low, found.params["x"].high) == (-2.0, 4.0)


def test_what_reads_infinity_stays_in_float() -> None:
    model = rows(
        [node("Log", "x", "l"), node("Gemm", "l w", "h"), node("Gemm", "x v", "y")], "h y", w=EYE, v=EYE
    )  # the logarithm of 0 is minus infinity
    found = calibrate(model, [{"x": np.array([[1.0, 0.0, 2.0, 3.0]], np.float32)}], "min-max")
    assert found.keep_float == {"n_h": "tensor 'l': holds NaN or infinity; no range can be found"}
    assert set(found.params) == {"x", "v"}


def test_nothing_that_could_be_quantized() -> None:
    with pytest.raises(QuantizationError) as caught:
        calibrate(rows([node("Sigmoid", "x", "y")]), FEEDS, "mse")
    assert str(caught.value) == (
        "nothing to quantize: no Conv, Gemm or MatMul with constant float weights; the graph holds: Sigmoid"
    )


def test_nothing_left_that_could_be_quantized() -> None:
    model = rows([node("Log", "x", "l"), node("Gemm", "l w", "y")], w=EYE)
    with pytest.raises(QuantizationError) as caught:
        calibrate(model, [{"x": np.zeros((1, 4), np.float32)}], "mse")
    assert str(caught.value) == (
        "nothing is left to quantize: all of 1 nodes stay in float; 'n_y': tensor 'l': holds NaN or infinity; no range can "
        "be found"
    )
