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


ROWWISE = ("Hardmax", "LogSoftmax", "Softmax")


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("kind", ROWWISE)
def test_all_axes_from_one_on_stay_together(kind: str, axis: int | None, opset: int) -> None:
    """From opset 13 on it is that axis alone, and the last one by default."""
    if axis is not None and axis < 0 and opset < 11:
        return
    nodes = [node("Relu", "x", "r"), node(kind, "r", "y", **({} if axis is None else {"axis": axis}))]
    model, feed = graph(nodes, {}, {"x": ["n", 3, 4, 5]}, {"y": ["n", 3, 4, 5]}, opset), {"x": random(2, 3, 4, 5)}
    newer = at_opset(model, 17)
    onnx.checker.check_model(newer, full_check=True)
    np.testing.assert_allclose(run(newer, feed)["y"], run(model, feed)["y"], atol=1e-6)


def test_all_axes_stay_together_inside_a_branch() -> None:
    def branch(name: str) -> onnx.GraphProto:
        made = helper.make_node("Hardmax", ["x"], [name], name=name)
        return helper.make_graph([made], name, [], [helper.make_tensor_value_info(name, 1, ["a", "b", "c"])])

    nodes = [node("ReduceMax", "x", "top", keepdims=0), node("Cast", "top", "go", to=onnx.TensorProto.BOOL)]
    nodes.append(helper.make_node("If", ["go"], ["y"], then_branch=branch("t"), else_branch=branch("e")))
    model, feed = graph(nodes, {}, {"x": [2, 3, 4]}, {"y": ["a", "b", "c"]}, 12), {"x": random(2, 3, 4)}
    np.testing.assert_array_equal(run(at_opset(model, 17), feed)["y"], run(model, feed)["y"])


def test_a_hardmax_of_somebody_elses_is_left_alone() -> None:
    model = graph([node("Hardmax", "x", "y", domain="own")], {}, {"x": ["n", 3, 4]}, {"y": ["n", 3, 4]}, 12, ["own"])
    assert [each.op_type for each in at_opset(model, 17).graph.node] == ["Hardmax"]


def calling(body: list[onnx.NodeProto], opset: int, imported: int) -> onnx.ModelProto:
    """A model whose one node is a call of a local function of inputs a and b and output c."""
    function = helper.make_function("own", "Layer", ["a", "b"], ["c"], body, [helper.make_opsetid("", imported)])
    nodes = [helper.make_node("Layer", ["x", "w"], ["y"], domain="own")]
    model = graph(nodes, {"w": random(4, 3)}, {"x": ["n", 4]}, {"y": ["n", 3]}, opset, ["own"])
    model.functions.append(function)
    return model


@pytest.mark.parametrize(("opset", "imported"), [(12, 12), (12, 11), (11, 12), (9, 10)])
def test_local_functions_are_written_out(opset: int, imported: int) -> None:
    """Those of another opset too: ONNX's converter gives the call without the function."""
    newer = canonicalise(calling([node("MatMul", "a b", "t"), node("Relu", "t", "c")], opset, imported))
    assert [each.op_type for each in newer.graph.node] == ["MatMul", "Relu"]
    x = random(5, 4)
    np.testing.assert_allclose(run(newer, {"x": x})["y"], np.maximum(x @ random(4, 3), 0), atol=1e-5)


def test_a_function_that_resizes_otherwise_than_the_model() -> None:
    text = (
        "the local function 'own::Layer' computes Upsample as opset 9 does, and the model has 12; export it with one "
        "opset"
    )
    with pytest.raises(ArtifactError, match=f"^{re.escape(text)}$"):
        at_opset(calling([node("Upsample", "a b", "c", mode="linear")], 12, 9), 17)


@pytest.mark.parametrize("kind", ROWWISE)
@pytest.mark.parametrize(("opset", "imported"), [(13, 12), (12, 13)])
def test_a_function_that_takes_other_axes_than_the_model(kind: str, opset: int, imported: int) -> None:
    text = (
        f"the local function 'own::Layer' computes {kind} as opset {imported} does, and the model has {opset}; export "
        "it with one opset"
    )
    with pytest.raises(ArtifactError, match=f"^{re.escape(text)}$"):
        at_opset(calling([node("MatMul", "a b", "t"), node(kind, "t", "c")], opset, imported), 17)


def test_a_function_that_cannot_be_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for whatever else the inliner leaves as it is."""
    monkeypatch.setattr("onnx.inliner.inline_local_functions", lambda model, convert_version: model)
    text = (
        "the local function 'own::Layer' cannot be written out where it is called; export the model without functions"
    )
    with pytest.raises(ArtifactError, match=f"^{re.escape(text)}$"):
        at_opset(calling([node("MatMul", "a b", "c")], 12, 12), 17)
