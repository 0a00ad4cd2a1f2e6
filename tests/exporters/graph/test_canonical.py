"""The canonical form computes the same, holds no batch norm and no trace of the machine it was made on."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgesmith.core.errors import QuantizationError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise, strip_notes

from ..conftest import Network
from ..graphs import FLOAT, graph, kinds, node, random, run


@pytest.mark.parametrize("batch", [1, 5])
def test_computes_the_same_at_any_batch_size(network: Network, batch: int) -> None:
    feed = {name: array[:batch] for name, array in network.feed.items()}
    with torch.no_grad():
        expected = network.module.eval()(*(torch.tensor(array) for array in feed.values())).numpy()
    (actual,) = run(network.model, feed).values()
    assert actual.shape == (batch, 10)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    (before,) = run(onnx_file.load(network.path), feed).values()
    np.testing.assert_allclose(actual, before, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_forms_of_the_three_networks(digits: Network, vgg: Network, separable: Network) -> None:
    assert kinds(digits.model) == {"Conv": 10, "Relu": 9, "Add": 4, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert kinds(vgg.model) == {"Conv": 2, "Relu": 3, "MaxPool": 1, "Reshape": 1, "Gemm": 2}
    assert kinds(separable.model) == {"Conv": 5, "Clip": 5, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1}


def test_inputs_and_outputs_keep_names_and_shapes(network: Network) -> None:
    assert onnx_file.specs(network.model) == onnx_file.specs(onnx_file.load(network.path))


def test_canonical_is_its_own_canonical_form(network: Network) -> None:
    again = canonicalise(network.model)
    assert kinds(again) == kinds(network.model)
    (name, output), *_ = run(again, network.feed).items()
    np.testing.assert_allclose(output, run(network.model, network.feed)[name], atol=1e-5 * np.abs(output).max())


def test_input_model_is_not_changed(digits: Network) -> None:
    loaded = onnx_file.load(digits.path)
    before = loaded.SerializeToString()
    canonicalise(loaded)
    assert loaded.SerializeToString() == before


# --- average pooling


def mean(axes: list[int], keep: int, shape: list[int | str], opset: int = 18, kind: int = FLOAT) -> onnx.ModelProto:
    """A Relu, so that the mean reads an inner tensor, and the mean."""
    given = opset < 18
    reduce = node("ReduceMean", "r" if given else "r axes", "y", keepdims=keep, **({"axes": axes} if given else {}))
    weights = {} if given else {"axes": np.array(axes, np.int64)}
    model = graph([node("Relu", "x", "r"), reduce], weights, {"x": shape}, {"y": None}, opset)
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        value.type.tensor_type.elem_type = kind
    return model


POOLED = {"Relu": 1, "GlobalAveragePool": 1}


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("axes", [[2, 3], [-2, -1], [-1, -2], [3, -2]])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_mean_over_all_positions_is_average_pooling(axes: list[int], keep: int, opset: int) -> None:
    model = mean(axes, keep, ["n", 6, 5, 4], opset)
    canonical = canonicalise(model)
    assert kinds(canonical) == (POOLED if keep else POOLED | {"Flatten": 1})
    for batch in (1, 5):
        x = random(batch, 6, 5, 4)
        y = run(canonical, {"x": x})["y"]
        np.testing.assert_allclose(y, np.maximum(x, 0).mean((2, 3), keepdims=bool(keep)), atol=1e-6)


@pytest.mark.parametrize("axes", [[2], [3], [1, 2, 3], [1], [0, 2, 3], [0], [1, 2], []])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_mean_over_other_axes_stays(axes: list[int], keep: int) -> None:
    model = mean(axes, keep, ["n", 6, 5, 4])
    canonical = canonicalise(model)
    assert "GlobalAveragePool" not in kinds(canonical)
    x = random(3, 6, 5, 4)
    over = tuple(axes) or (0, 1, 2, 3)
    expected = np.maximum(x, 0).mean(over, keepdims=bool(keep))
    np.testing.assert_allclose(run(canonical, {"x": x})["y"], expected, atol=1e-6)


@pytest.mark.parametrize(("keep", "pooled"), [(0, True), (1, False)])
def test_of_three_axes_only_a_dropped_one_is_pooling(keep: int, pooled: bool) -> None:
    # Kept, it is the mean of a normalization over the features of tokens `(batch, tokens, features)`.
    canonical = canonicalise(mean([2], keep, ["n", 6, 5]))
    assert ("GlobalAveragePool" in kinds(canonical)) == pooled
    x = random(3, 6, 5)
    expected = np.maximum(x, 0).mean(2, keepdims=bool(keep))
    np.testing.assert_allclose(run(canonical, {"x": x})["y"], expected, atol=1e-6)


def test_a_mean_of_doubles_stays_since_pooling_has_no_kernel_for_them() -> None:
    canonical = canonicalise(mean([2, 3], 1, ["n", 6, 5, 4], kind=onnx.TensorProto.DOUBLE))
    assert "GlobalAveragePool" not in kinds(canonical)
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 4))
    np.testing.assert_allclose(run(canonical, {"x": x})["y"], np.maximum(x, 0).mean((2, 3), keepdims=True))


def test_axes_that_are_no_constant_stay() -> None:
    model = mean([2, 3], 1, ["n", 6, 5, 4])
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, [2]))
    assert "GlobalAveragePool" not in kinds(canonicalise(model))


def test_the_pooled_tensor_takes_nobodys_name() -> None:
    model = mean([2, 3], 0, ["n", 6, 5, 4])
    model.graph.node.append(node("Neg", "r", "y_pooled"))
    model.graph.output.append(helper.make_tensor_value_info("y_pooled", FLOAT, None))
    x = random(2, 6, 5, 4)
    outputs = run(canonicalise(model), {"x": x})
    np.testing.assert_allclose(outputs["y"], np.maximum(x, 0).mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(outputs["y_pooled"], -np.maximum(x, 0))


# --- old files, foreign operators


def batch_normed(opset: int) -> onnx.ModelProto:
    channels = {name: np.abs(random(4, seed=seed)) for seed, name in enumerate(["s", "b", "m", "v"])}
    nodes = [node("Conv", "x w", "h"), node("BatchNormalization", "h s b m v", "n"), node("Clip", "n low high", "y")]
    if opset < 11:
        nodes[2] = node("Clip", "n", "y", min=0.0, max=6.0)
    bounds = {"low": np.float32(0), "high": np.float32(6)} if opset >= 11 else {}
    weights = {"w": random(4, 3, 3, 3), **channels, **{name: np.asarray(value) for name, value in bounds.items()}}
    return graph(nodes, weights, {"x": ["n", 3, 8, 8]}, {"y": None}, opset)


@pytest.mark.parametrize(("opset", "written"), [(9, 17), (11, 17), (12, 17), (13, 13), (17, 17), (21, 21)])
def test_old_files_are_converted(opset: int, written: int) -> None:
    model, x = batch_normed(opset), random(2, 3, 8, 8)
    canonical = canonicalise(model)
    assert [entry.version for entry in canonical.opset_import] == [written]
    assert kinds(canonical) == {"Conv": 1, "Clip": 1}
    np.testing.assert_allclose(run(canonical, {"x": x})["y"], run(model, {"x": x})["y"], atol=1e-5)


def test_weights_listed_as_inputs_are_weights() -> None:
    model, x = batch_normed(17), random(2, 3, 8, 8)
    expected = run(model, {"x": x})["y"]
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims) for tensor in model.graph.initializer
    )
    canonical = canonicalise(model)
    assert [value.name for value in canonical.graph.input] == ["x"]
    assert kinds(canonical) == {"Conv": 1, "Clip": 1}
    np.testing.assert_allclose(run(canonical, {"x": x})["y"], expected, atol=1e-5)


def test_an_operator_nobody_knows() -> None:
    model = graph([helper.make_node("Warp", ["x"], ["y"], domain="own")], {}, {"x": [4]}, {"y": [4]}, domains=["own"])
    with pytest.raises(QuantizationError, match=r"^ONNX Runtime cannot load the graph: .*Warp") as raised:
        canonicalise(model)
    assert "source.onnx" not in str(raised.value)  # a file of ours that is gone by then


def test_an_operator_that_only_the_runtime_knows_stays() -> None:
    nodes = [node("Relu", "x", "r"), helper.make_node("Gelu", ["r"], ["y"], name="g", domain="com.microsoft")]
    model = graph(nodes, {}, {"x": ["n", 4]}, {"y": None}, domains=["com.microsoft"])
    canonical = canonicalise(model)
    assert [node.domain for node in canonical.graph.node] == ["", "com.microsoft"]
    assert [entry.domain for entry in canonical.opset_import] == ["", "com.microsoft"]


def test_an_opset_too_old_to_convert() -> None:
    model = graph([node("Upsample", "x s", "y")], {"s": np.ones(4, np.float32)}, {"x": [1, 1, 2, 2]}, {"y": None}, 9)
    model.opset_import[0].version = 0
    with pytest.raises(QuantizationError, match=r"^the graph has opset 0 and cannot be converted to 17: "):
        canonicalise(model)


# --- notes


class Branches(nn.Module):
    """Two branches in the file, so that notes stand in graphs inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: self.one(v), lambda v: self.two(v) * 2, (x,))


def test_no_path_of_this_machine_is_in_the_file(digits: Network, tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    path = tmp_path / "branches.onnx"
    from_torch.export(Branches(), {"x": random(8, 4)}, (spec,), ("y",), path)
    assert "If" in kinds(onnx_file.load(path))
    for data in (path.read_bytes(), digits.path.read_bytes(), digits.model.SerializeToString()):
        for trace in (b".py", b"stack_trace", b"site-packages", str(tmp_path.parents[1]).encode(), b"File "):
            assert trace not in data
    x = random(3, 4)
    canonical = canonicalise(onnx_file.load(path))
    np.testing.assert_allclose(run(canonical, {"x": x})["y"], Branches.forward(_same(path), torch.tensor(x)), atol=1e-5)


def _same(path: Path) -> Branches:
    """The module, its weights read back from the file it was exported to."""
    module = Branches()
    found = {tensor.name.removeprefix("module."): tensor for tensor in _all_initializers(onnx_file.load(path).graph)}
    module.load_state_dict(
        {name: torch.tensor(onnx.numpy_helper.to_array(found[name]).copy()) for name in module.state_dict()}
    )
    return module.requires_grad_(False)


def _all_initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    inner = [sub for node in graph.node for sub in onnx_file.subgraphs(node)]
    return [*graph.initializer, *(tensor for sub in inner for tensor in _all_initializers(sub))]


def test_an_input_without_a_name_at_the_end_is_left_out() -> None:
    """TensorRT's parser refuses a convolution with an empty name for its bias; one in the middle counts the others."""
    nodes = [node("Conv", "x w", "h"), node("Clip", "h", "y")]
    nodes[0].input.append("")
    nodes[1].input.extend(["", "six"])
    weights = {"w": random(4, 3, 3, 3), "six": np.full((), 6, np.float32)}
    conv, clip = canonicalise(graph(nodes, weights, {"x": ["n", 3, 6, 6]}, {"y": None})).graph.node
    assert [list(each.input) for each in (conv, clip)] == [["x", "w"], ["h", "", "six"]]


def test_a_loop_keeps_the_input_that_it_does_not_name() -> None:
    """Its schema wants two; ONNX Runtime refuses one with fewer."""
    body = helper.make_graph(
        [node("Identity", "c", "go"), node("Identity", "x", "row")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []), helper.make_tensor_value_info("row", FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["many", ""], ["y"], body=body)
    model = graph([loop], {"many": np.array(3, np.int64)}, {"x": [2, "n"]}, {"y": [3, 2, "n"]})
    x = random(2, 4)
    canonical = canonicalise(model)
    assert list(canonical.graph.node[0].input)[1:] == [""]
    np.testing.assert_array_equal(run(canonical, {"x": x})["y"], np.stack([x] * 3))


def test_every_node_has_a_name_of_its_own() -> None:
    nodes = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Neg", "b", "c"), node("Relu", "c", "y")]
    model = graph(nodes, {}, {"x": [4]}, {"y": [4]})
    for made, name in zip(model.graph.node, ["same", "same", "", ""], strict=True):
        made.name, made.doc_string = name, "note"
        made.metadata_props.add(key="stack_trace", value="File model.py")
    model.doc_string = model.graph.doc_string = "note"
    strip_notes(model)
    assert [made.name for made in model.graph.node] == ["same", "same_1", "Neg", "Relu"]
    assert b"note" not in model.SerializeToString() and b"stack_trace" not in model.SerializeToString()


def test_what_a_file_says_of_itself_stays() -> None:
    model = graph([node("Relu", "x", "y")], {}, {"x": [4]}, {"y": [4]})
    model.metadata_props.add(key="character", value="abc")  # a text recogniser's alphabet
    assert [(entry.key, entry.value) for entry in canonicalise(model).metadata_props] == [("character", "abc")]
