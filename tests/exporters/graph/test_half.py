"""FP16 by casting the graph: the same outputs within FP16's precision, and no silent clipping."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgesmith.core.errors import QuantizationError
from edgesmith.exporters.graph import half
from edgesmith.exporters.int8 import qdq

from ..conftest import Network
from ..graphs import S8, decibels, graph, node, quantized, random, run


def types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer}


def test_outputs_agree_within_fp16(network: Network) -> None:
    cast = half.to_half(network.model)
    onnx.checker.check_model(cast, full_check=True)
    (output,) = [value.name for value in network.model.graph.output]
    expected, actual = run(network.model, network.feed)[output], run(cast, network.feed)[output]
    assert actual.dtype == np.float32, "inputs and outputs stay float32"
    assert decibels(expected, actual) > 50, "FP16 has 11 bits; a sum of many loses a few of them"
    assert TensorProto.FLOAT not in types(cast)
    assert cast.ByteSize() < 0.65 * network.model.ByteSize()


def test_pairs_are_cast_too(network: Network) -> None:
    model = qdq.write_qdq(network.model, network.params, S8)
    cast = half.to_half(model)
    onnx.checker.check_model(cast, full_check=True)
    assert half.is_quantized(cast) and TensorProto.FLOAT not in types(cast)
    pairs = ("QuantizeLinear", "DequantizeLinear")
    assert sum(n.op_type in pairs for n in cast.graph.node) == sum(n.op_type in pairs for n in model.graph.node)
    (output,) = [value.name for value in model.graph.output]
    expected, actual = run(model, network.feed)[output], run(cast, network.feed)[output]
    assert decibels(expected, actual) > 25, "values near a boundary may fall into the next INT8 step"
    assert network.labels is None or (expected.argmax(1) == actual.argmax(1)).mean() > 0.99


def test_the_model_itself_is_not_changed(vgg: Network) -> None:
    before = vgg.model.SerializeToString(deterministic=True)
    half.to_half(vgg.model)
    assert vgg.model.SerializeToString(deterministic=True) == before


def test_an_old_opset_is_raised_for_pairs_only() -> None:
    model = graph([node("MatMul", "x w", "y")], {"w": random(4, 3)}, {"x": ["n", 4]}, {"y": ["n", 3]})
    feed = {"x": random(8, 4, seed=1)}
    cast = half.to_half(model)
    assert cast.opset_import[0].version == 17
    pairs = quantized(model, feed, S8)
    cast = half.to_half(pairs)
    assert cast.opset_import[0].version == half.QDQ_OPSET
    assert decibels(run(pairs, feed)["y"], run(cast, feed)["y"]) > 25


def test_a_weight_outside_fp16_is_an_error() -> None:
    model = graph([node("MatMul", "x w", "y")], {"w": np.full((4, 3), -7e4, np.float32)}, {"x": ["n", 4]}, {"y": ["n", 3]})  # fmt: skip
    with pytest.raises(QuantizationError) as raised:
        half.to_half(model)
    assert str(raised.value) == (
        "weight 'w': 70000 is outside FP16, whose largest number is 65504; keep the file as it is (precision 'as-is')"
    )


def test_so_is_one_in_a_constant_node() -> None:
    constant = node("Constant", "", "c", value=numpy_helper.from_array(np.float32(1e6).reshape(())))
    model = graph([constant, node("Add", "x c", "y")], {}, {"x": ["n"]}, {"y": ["n"]})
    with pytest.raises(QuantizationError, match=r"^weight 'c': 1e\+06 is outside FP16"):
        half.to_half(model)


def test_what_stands_for_infinity_is_clipped() -> None:
    mask = np.array([0, np.finfo(np.float32).min], np.float32)
    model = graph([node("Add", "x m", "a"), node("Softmax", "a", "y", axis=1)], {"m": mask}, {"x": ["n", 2]}, {"y": ["n", 2]})  # fmt: skip
    cast = half.to_half(model)
    assert run(cast, {"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1.0, 0.0]]


def test_sums_of_squares_stay_in_float() -> None:
    model = graph([node("ReduceSumSquare", "x", "s", axes=[1], keepdims=1), node("Sqrt", "s", "y")], {}, {"x": ["n", 64]}, {"y": ["n", 1]})  # fmt: skip
    cast = half.to_half(model)
    kept = [n for n in cast.graph.node if n.op_type == "ReduceSumSquare"]
    casts = {n.output[0]: n.attribute[0].i for n in cast.graph.node if n.op_type == "Cast"}
    assert [casts[n.input[0]] for n in kept] == [TensorProto.FLOAT]
    values = np.full((2, 64), 100, np.float32)  # the sum is 640000, past FP16; its root is not
    assert run(cast, {"x": values})["y"].tolist() == [[800.0], [800.0]]


def pair(scale: float) -> onnx.ModelProto:
    weights = {"s": np.float32(scale).reshape(()), "z": np.int8(0).reshape(())}
    return graph([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")], weights, {"x": ["n"]}, {"y": ["n"]})  # fmt: skip


def test_a_scale_that_fp16_cannot_tell_is_an_error() -> None:
    with pytest.raises(QuantizationError) as raised:
        half.to_half(pair(1.5e-6))
    assert str(raised.value) == (
        "scale 's': 1.5e-06 is too small for FP16, which is 0.7% off there; keep the file as it is (precision 'as-is')"
    )
    half.to_half(pair(1e-4))
    half.to_half(pair(1e-9))  # the whole range is below what FP16 resolves
