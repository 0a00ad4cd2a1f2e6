"""A file in a newer opset computes what it did: what ONNX's converter loses on the way."""

import re

import numpy as np
import onnx
import pytest
from onnx import helper

from edgesmith.core.errors import ArtifactError, QuantizationError
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


def resized(scales: list[float] | None, mode: str) -> onnx.ModelProto:
    """A Resize of opset 10; None: by scales that are computed."""
    nodes = [node("Resize", "x s", "y", mode=mode)]
    if scales is None:
        nodes = [node("ReduceMax", "x", "s", axes=[0, 2, 3], keepdims=0), *nodes]
    weights = {} if scales is None else {"s": np.array([1, 1, *scales], np.float32)}
    return graph(nodes, weights, {"x": [1, 4, 10, 10]}, {"y": ["a", "b", "c", "d"]}, 10)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [[0.5, 0.5], [0.6, 0.6], [0.7, 0.7], [1, 0.6], [1.7, 1.7], [1, 2.3]])
def test_what_shrinks_takes_the_pixels_that_it_took(scales: list[float], mode: str) -> None:
    model, feed = resized(scales, mode), {"x": random(1, 4, 10, 10)}
    np.testing.assert_allclose(run(at_opset(model, 17), feed)["y"], run(model, feed)["y"], atol=1e-6)


@pytest.mark.parametrize(
    ("scales", "said"), [([0.6, 2], "are 1, 1, 0.6, 2"), ([0.7, 1.7], "are 1, 1, 0.7, 1.7"), (None, "are computed")]
)
def test_a_nearest_pixel_that_no_newer_resize_takes(scales: list[float] | None, said: str) -> None:
    text = (
        f"Resize 'n_y': its scales {said}, and up to opset 10 the nearest pixel is rounded up where an axis shrinks and "
        "down where it grows, which no newer Resize does; export it with opset 11 or later"
    )
    with pytest.raises(ArtifactError, match=f"^{re.escape(text)}$"):
        at_opset(resized(scales, "nearest"), 17)
    whole = f"the graph has opset 10 and cannot be converted to 17: {text}"
    with pytest.raises(QuantizationError, match=f"^{re.escape(whole)}$"):
        canonicalise(resized(scales, "nearest"))


def test_mixed_scales_are_no_matter_where_it_interpolates() -> None:
    model, feed = resized([0.6, 2], "linear"), {"x": random(1, 4, 10, 10)}
    np.testing.assert_allclose(run(at_opset(model, 17), feed)["y"], run(model, feed)["y"], atol=1e-6)


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
