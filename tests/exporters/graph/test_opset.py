"""A file in a newer opset computes what it did: what ONNX's converter loses on the way."""

import numpy as np
import pytest
from onnx import helper

from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.graph.opset import at_opset

from ..graphs import graph, node, random, run

SIZES = {"s": np.array([1, 1, 2, 3], np.float32)}


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10)])
def test_what_is_enlarged_lies_where_it_lay(kind: str, opset: int, mode: str) -> None:
    """From opset 11 on a Resize takes pixels for areas by default, where they were points before."""
    more = {"scales": SIZES["s"].tolist()} if opset < 9 else {}
    nodes = [node(kind, "x" if more else "x s", "y", mode=mode, **more)]
    model = graph(nodes, {} if more else SIZES, {"x": ["n", 3, 5, 4]}, {"y": ["n", 3, 10, 12]}, opset)
    feed = {"x": random(2, 3, 5, 4)}
    expected = run(model, feed)["y"]
    for newer in (at_opset(model, 17), canonicalise(model)):
        assert newer.opset_import[0].version == 17
        np.testing.assert_allclose(run(newer, feed)["y"], expected, atol=1e-6)


def test_a_resize_that_says_so_itself_is_left_alone() -> None:
    said = {"coordinate_transformation_mode": "align_corners", "mode": "linear"}
    nodes = [node("Resize", "x r s", "y", **said)]
    model = graph(nodes, {**SIZES, "r": np.zeros(0, np.float32)}, {"x": ["n", 3, 5, 4]}, {"y": ["n", 3, 10, 12]}, 11)
    feed = {"x": random(2, 3, 5, 4)}
    np.testing.assert_allclose(run(at_opset(model, 17), feed)["y"], run(model, feed)["y"], atol=1e-6)


def test_local_functions_are_written_out() -> None:
    body = [node("MatMul", "a b", "t"), node("Relu", "t", "c")]
    imports = [helper.make_opsetid("", 12)]
    function = helper.make_function("own", "Layer", ["a", "b"], ["c"], body, imports)
    nodes = [helper.make_node("Layer", ["x", "w"], ["y"], domain="own")]
    model = graph(nodes, {"w": random(4, 3)}, {"x": ["n", 4]}, {"y": ["n", 3]}, 12, ["own"])
    model.functions.append(function)
    newer = canonicalise(model)
    assert [each.op_type for each in newer.graph.node] == ["MatMul", "Relu"]
    x = random(5, 4)
    np.testing.assert_allclose(run(newer, {"x": x})["y"], np.maximum(x @ random(4, 3), 0), atol=1e-5)
