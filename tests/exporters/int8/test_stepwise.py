"""The walk computes what the INT8 file computes, layer by layer, and hands on what a visit changed."""

import dataclasses

import numpy as np
import onnx
import pytest

from edgesmith.core.errors import QuantizationError
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.layer import Layer
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import weight_params, write_qdq
from edgesmith.exporters.int8.stepwise import walk

from ..conftest import Network
from ..graphs import ASYMMETRIC, S8, U8, U8_7, calibrate, graph, initializer, node, random, run

PLENTY = 1 << 30
FLOAT_BIAS = {"int32_bias": False, "pair_after_last": ()}
DIALECTS = [S8, *(dataclasses.replace(dialect, **FLOAT_BIAS) for dialect in (U8, U8_7, ASYMMETRIC))]


def batches(network: Network, count: int = 4, size: int = 16) -> list[dict[str, np.ndarray]]:
    return [{n: a[i * size : (i + 1) * size] for n, a in network.feed.items()} for i in range(count)]


def visited(network: Network, dialect: Dialect) -> list[Layer]:
    layers: list[Layer] = []

    def visit(layer: Layer) -> Layer:
        layers.append(layer)
        return layer

    walk(network.model, place(network.model), network.params, dialect, batches(network), visit, PLENTY)
    return layers


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_what_a_layer_gives_is_what_the_file_gives(network: Network, dialect: Dialect, per_tensor: bool) -> None:
    params = network.params | weight_params(network.model, place(network.model), per_tensor)
    network = dataclasses.replace(network, params=params)
    last = visited(network, dialect)[-1]
    written = write_qdq(network.model, network.params, dialect)
    for feed, value in zip(batches(network), last.run(last.quantized, last.bias), strict=True):
        (expected,) = run(written, feed, optimise=False).values()
        # The sums are added in another order, so now and then a value falls on the other side of a rounding.
        assert np.median(np.abs(value - expected)) < 1e-5
        assert np.abs(value - expected).max() < 0.05 * np.abs(expected).max()


def test_what_is_wanted_is_what_the_float_graph_gives(network: Network) -> None:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(network.model)
    layers = visited(network, S8)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=layer.node.output[0]) for layer in layers)
    assert len(layers) == sum(made.op_type in ("Conv", "Gemm") for made in network.model.graph.node)
    for index, feed in enumerate(batches(network)):
        values = run(tapped, feed)
        for layer in layers:
            np.testing.assert_allclose(layer.wanted[index], values[layer.node.output[0]], rtol=1e-4, atol=1e-4)


def test_a_visit_that_changes_nothing_gives_the_graph_back(network: Network) -> None:
    before = network.model.SerializeToString(deterministic=True)
    walked = walk(
        network.model, place(network.model), network.params, S8, batches(network), lambda layer: layer, PLENTY
    )
    assert walked.model == network.model
    assert network.model.SerializeToString(deterministic=True) == before
    assert walked.batches == 4


def test_layers_behind_see_what_a_visit_changed() -> None:
    """Two layers and a bias that has to be made: the second gets the first one's new output."""
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r v c", "y")]
    weights = {
        "w": np.ones((2, 1, 1, 1), np.float32),
        "v": np.ones((2, 2, 1, 1), np.float32),
        "c": np.zeros(2, np.float32),
    }
    model = graph(nodes, weights, {"x": ["n", 1, 2, 2]}, {"y": None})
    feed = {"x": np.ones((3, 1, 2, 2), np.float32)}
    params = calibrate(model, {"x": np.full((1, 1, 2, 2), 12.7, np.float32)})
    inputs: list[float] = []

    def visit(layer: Layer) -> Layer:
        inputs.append(float(layer.inputs[0].mean()))
        assert layer.bias is not None
        return dataclasses.replace(layer, weight=2 * layer.weight, bias=layer.bias + np.float32(3))

    params["w"] = dataclasses.replace(params["w"], scale=2 * params["w"].scale)
    changed = walk(model, place(model), params, S8, [feed], visit, PLENTY).model
    assert inputs == pytest.approx([1.0, 5.0], abs=0.05)
    assert list(changed.graph.node[0].input) == ["x", "w", "n_h_bias"]
    assert initializer(changed, "n_h_bias").tolist() == [3, 3]
    assert initializer(changed, changed.graph.node[2].input[2]).tolist() == [3, 3]
    assert initializer(changed, "w").reshape(-1).tolist() == [2, 2]
    np.testing.assert_allclose(run(changed, feed)["y"], 23)


def test_the_bias_of_a_product_is_that_of_the_add_behind_it() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Add", "b h", "s"), node("Relu", "s", "r"), node("MatMul", "r v", "y")]
    weights = {"w": random(4, 3), "b": random(3, seed=1), "v": random(3, 2, seed=2)}
    model = graph(nodes, weights, {"x": ["n", 5, 4]}, {"y": None})
    feed = {"x": random(6, 5, 4, seed=3)}
    biases: list[np.ndarray | None] = []

    def visit(layer: Layer) -> Layer:
        biases.append(layer.bias)
        return layer if layer.bias is None else dataclasses.replace(layer, bias=layer.bias + np.float32(1))

    changed = walk(model, place(model), calibrate(model, feed), S8, [feed], visit, PLENTY).model
    assert biases[1] is None
    np.testing.assert_array_equal(biases[0], weights["b"])
    assert list(changed.graph.node[1].input) == ["b", "h"]
    np.testing.assert_allclose(initializer(changed, "b"), weights["b"] + 1, rtol=1e-6)


def test_a_bias_that_two_nodes_read_is_changed_for_one() -> None:
    nodes = [node("Gemm", "x w b", "h"), node("Gemm", "h v b", "y")]
    model = graph(nodes, {"w": random(3, 3), "v": random(3, 3, seed=1), "b": random(3)}, {"x": ["n", 3]}, {"y": None})
    feed = {"x": random(6, 3)}

    def visit(layer: Layer) -> Layer:
        assert layer.bias is not None
        return layer if layer.node.output[0] == "y" else dataclasses.replace(layer, bias=layer.bias + np.float32(1))

    changed = walk(model, place(model), calibrate(model, feed), S8, [feed], visit, PLENTY).model
    assert [made.input[2] for made in changed.graph.node] == ["b_1", "b"]
    np.testing.assert_array_equal(initializer(changed, "b"), random(3))


def test_memory_bounds_the_batches_and_one_is_always_used(digits: Network) -> None:
    def used(memory: int) -> int:
        data = batches(digits, count=6)
        return walk(digits.model, place(digits.model), digits.params, S8, data, lambda layer: layer, memory).batches

    assert used(0) == 1
    assert used(PLENTY) == 6
    # The widest place of this network: the residual and the branch, in float and in INT8, 16 channels of 8x8 each.
    one = 16 * 4 * 16 * 64 * 4
    assert 2 <= used(4 * one) <= 4


def test_a_node_that_cannot_run_alone_is_named() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("SplitToSequence", "h", "s", axis=0),
        node("ConcatFromSequence", "s", "y", axis=0),
    ]
    model = graph(nodes, {"w": random(3, 3)}, {"x": ["n", 3]}, {"y": ["n", 3]})
    feed = {"x": random(4, 3)}
    with pytest.raises(QuantizationError) as raised:
        walk(model, place(model), calibrate(model, feed), S8, [feed], lambda layer: layer, PLENTY)
    assert str(raised.value) == (
        "node 'n_s' (SplitToSequence) cannot be run by itself: it gives a sequence; "
        "leave 'round' and 'bias-correction' out of recover"
    )


def test_branches_inside_a_node_read_the_values_outside() -> None:
    then, other = (
        onnx.helper.make_graph(
            [onnx.helper.make_node(kind, ["h"], [f"{kind}_y"])],
            kind,
            [],
            [onnx.helper.make_tensor_value_info(f"{kind}_y", onnx.TensorProto.FLOAT, None)],
        )
        for kind in ("Neg", "Identity")
    )
    nodes = [
        node("MatMul", "x w", "h"), node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "c"),
        node("If", "c", "i", then_branch=then, else_branch=other), node("MatMul", "i v", "y"),
    ]  # fmt: skip
    weights = {"w": random(3, 3), "v": random(3, 2, seed=1), "zero": np.zeros((), np.float32)}
    model = graph(nodes, weights, {"x": ["n", 3]}, {"y": ["n", 2]})
    feed = {"x": random(4, 3)}
    layers: list[Layer] = []
    walk(model, place(model), calibrate(model, feed), S8, [feed], lambda layer: layers.append(layer) or layer, PLENTY)
    np.testing.assert_allclose(layers[-1].wanted[0], -feed["x"] @ weights["w"] @ weights["v"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [(0.0, 6.0, (0.0, 6.0)), (-1.0, 6.0, (-np.inf, np.inf)), (0.0, np.inf, (0.0, np.inf))],
)
def test_a_layer_knows_the_activation_that_is_fused_to_it(
    lower: float, upper: float, expected: tuple[float, float]
) -> None:
    nodes = [node("Gemm", "x w", "h"), node("Clip", "h low high", "r"), node("Gemm", "r v", "y")]
    weights = {"w": random(3, 4), "v": random(4, 2), "low": np.full((), lower), "high": np.full((), upper)}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    model = graph(nodes, weights, {"x": ["n", 3]}, {"y": None})
    feed = {"x": random(8, 3)}
    layers: list[Layer] = []
    walk(model, place(model), calibrate(model, feed), S8, [feed], lambda layer: layers.append(layer) or layer, PLENTY)
    assert [(layer.low, layer.high) for layer in layers] == [expected, (-np.inf, np.inf)]
