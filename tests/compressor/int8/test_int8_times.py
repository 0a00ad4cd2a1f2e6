"""Which layers are tried in float, from times made up so that the answer is known."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesmith.compressor.int8.int8_times import LayerTimes, slower_in_int8
from edgesmith.exporters.int8.placement import place


def two_regions() -> onnx.ModelProto:
    """a -> Relu -> b, then a Sigmoid that stays in float, then c."""
    weights = {name: np.ones((4, 4), np.float32) for name in "abc"}
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["ta"], name="a"),
        helper.make_node("Relu", ["ta"], ["ra"], name="relu"),
        helper.make_node("Gemm", ["ra", "b"], ["tb"], name="b"),
        helper.make_node("Sigmoid", ["tb"], ["sb"], name="sigmoid"),
        helper.make_node("Gemm", ["sb", "c"], ["y"], name="c"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def slow(in_float: dict[str, float], in_int8: dict[str, float], **conversions: float) -> list[tuple[str, ...]]:
    times = LayerTimes(in_float=in_float, in_int8=in_int8, conversions=conversions)
    return slower_in_int8(two_regions(), times, place(two_regions()))


def test_nothing_to_try_where_all_are_faster() -> None:
    assert slow({"a": 3, "b": 3, "c": 3}, {"a": 1, "b": 1, "c": 1}, x=1, sb=1) == []


def test_a_region_pays_for_its_conversions_once() -> None:
    # a and b save 2 each and share one conversion of 3; c saves 2 and pays 3 alone.
    assert slow({"a": 3, "b": 3, "c": 3}, {"a": 1, "b": 1, "c": 1}, x=3, sb=3) == [("c",)]


def test_single_layers_come_after_regions_the_one_that_loses_most_first() -> None:
    in_int8 = {"a": 3.5, "b": 1, "c": 1}
    assert slow({"a": 3, "b": 9, "c": 3}, in_int8, x=1, sb=3) == [("c",), ("c", "a")]
    assert slow({"a": 3, "b": 3, "c": 9}, {"a": 1, "b": 4, "c": 1}, x=0, sb=1) == [("b",)]


def test_one_slow_layer_may_be_all_that_makes_its_region_slow() -> None:
    in_int8 = {"a": 9, "b": 1, "c": 1}
    assert slow({"a": 3, "b": 3, "c": 3}, in_int8, x=1, sb=1) == [("a", "b"), ("a",)]
    assert slow({"a": 3, "b": 3, "c": 3}, {"a": 9, "b": 4, "c": 1}, x=1, sb=1) == [("a", "b"), ("a",)]
