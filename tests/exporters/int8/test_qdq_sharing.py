"""The writer where tensors have several readers: outputs, tied weights, shared biases, branches, names already taken."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.qdq import write_qdq

from ..conftest import Network
from ..graphs import DIALECTS, U8, calibrate, decibels, graph, initializer, node, quantized, random, run

EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)

# --- outputs that something else reads, several outputs


@EVERY_DIALECT
@pytest.mark.parametrize("kind", ["Gemm", "Relu", "Flatten", "Conv"])
def test_an_output_that_an_int8_node_reads_as_well(dialect: Dialect, kind: str) -> None:
    """Features and logits: the features go out in float (or through a pair), the next layer reads them in INT8."""
    weights = {"w": random(4, 3, 3, 3), "v": random(4, 2), "g": random(4, 4, seed=3), "c": random(2, seed=4)}
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Flatten", "r", "f"), node("Gemm", "f g", "e")]
    features = {"Gemm": "e", "Relu": "r", "Flatten": "f", "Conv": "h"}[kind]
    nodes.append(node("Gemm", "e v c", "y"))
    model = graph(nodes, weights, {"x": ["n", 3, 3, 3]}, {features: None, "y": None})
    feed = {"x": random(64, 3, 3, 3)}
    expected, actual = run(model, feed), run(quantized(model, feed, dialect), feed)
    for name in (features, "y"):
        assert decibels(expected[name], actual[name]) > 25, name


@EVERY_DIALECT
def test_several_outputs_and_inputs(dialect: Dialect) -> None:
    weights = {"w": random(6, 5), "v": random(6, 5, seed=1), "b": random(5, seed=2)}
    nodes = [
        node("MatMul", "x w", "h"), node("Gemm", "z v b", "k"), node("Add", "h k", "s"), node("Relu", "s", "y"),
        node("Sigmoid", "h", "gate"), node("Identity", "k", "copy"),
    ]  # fmt: skip
    model = graph(nodes, weights, {"x": ["n", 6], "z": ["n", 6]}, {"y": None, "gate": None, "copy": None})
    feed = {"x": random(64, 6), "z": random(64, 6, seed=9)}
    expected, actual = run(model, feed), run(quantized(model, feed, dialect), feed)
    assert list(expected) == list(actual) == ["y", "gate", "copy"]
    for name in expected:
        assert decibels(expected[name], actual[name]) > 28, name


@EVERY_DIALECT
def test_an_input_that_is_an_output_as_well(dialect: Dialect) -> None:
    model = graph([node("MatMul", "x w", "y")], {"w": random(6, 5)}, {"x": ["n", 6]}, {"y": None})
    model.graph.output.add().CopyFrom(model.graph.input[0])
    feed = {"x": random(16, 6)}
    actual = run(quantized(model, feed, dialect), feed)
    np.testing.assert_array_equal(actual["x"], feed["x"])


# --- what is shared


@EVERY_DIALECT
def test_tied_weights_are_written_once(dialect: Dialect) -> None:
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r w c", "y")]
    weights = {"w": random(6, 6), "b": random(6, seed=1), "c": random(6, seed=2)}
    model = graph(nodes, weights, {"x": ["n", 6]}, {"y": None})
    feed = {"x": random(64, 6)}
    written = quantized(model, feed, dialect)
    integers = [
        tensor for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims
    ]
    assert [tuple(tensor.dims) for tensor in integers if tensor.name.startswith("w_q")] == [(6, 6)]
    # Unfused: ONNX Runtime's precise kernels for CPUs without VNNI fail on a shared weight.
    assert decibels(run(model, feed)["y"], run(written, feed, optimise=False)["y"]) > 28


@EVERY_DIALECT
def test_a_bias_shared_by_two_layers(dialect: Dialect) -> None:
    """Each layer's products have a scale of their own, so an INT32 bias is written for each."""
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v b", "y")]
    weights = {"w": random(6, 6), "v": random(6, 6, seed=1, scale=30), "b": random(6, seed=2, scale=50)}
    model = graph(nodes, weights, {"x": ["n", 6]}, {"y": None})
    feed = {"x": random(64, 6)}
    written = quantized(model, feed, dialect)
    biases = [tensor.name for tensor in written.graph.initializer if tensor.name.startswith("b_quantized")]
    assert biases == (["b_quantized", "b_quantized_1"] if dialect.int32_bias else [])
    assert decibels(run(model, feed)["y"], run(written, feed)["y"]) > 28


@EVERY_DIALECT
def test_a_weight_that_a_float_node_reads_stays_beside_its_integers(dialect: Dialect) -> None:
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h w", "y")]
    model = graph(nodes, {"w": random(6, 6)}, {"x": [6, 6]}, {"y": None})
    feed = {"x": random(6, 6, seed=1)}
    written = quantized(model, feed, dialect)
    np.testing.assert_array_equal(initializer(written, "w"), initializer(model, "w"))
    assert decibels(run(model, feed)["y"], run(written, feed)["y"]) > 28


@EVERY_DIALECT
def test_constants_of_branches_and_outputs_stay(dialect: Dialect) -> None:
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    branches = {
        f"{name}_branch": onnx.helper.make_graph([node(kind, "h c", "out")], name, [], [out])
        for name, kind in (("then", "Mul"), ("else", "Sub"))
    }
    weights = {"w": random(6, 6), "c": random(6, seed=1), "on": np.array(True), "version": np.ones(2, np.float32)}
    nodes = [node("MatMul", "x w", "h"), node("If", "on", "y", **branches)]
    model = graph(nodes, weights, {"x": ["n", 6]}, {"y": None, "version": [2]})
    feed = {"x": random(32, 6)}
    expected, actual = run(model, feed), run(quantized(model, feed, dialect), feed)
    assert decibels(expected["y"], actual["y"]) > 28
    np.testing.assert_array_equal(actual["version"], [1, 1])


@EVERY_DIALECT
def test_new_tensors_take_nobodys_name(dialect: Dialect) -> None:
    """Names the writer would give are taken: by an input, a weight, an inner tensor, a node."""
    nodes = [
        node("MatMul", "x w_scale", "x_dequantized"), node("Mul", "x_dequantized x_scale", "x_quantized"),
        node("Add", "x_quantized w_dequantized", "y_float"), node("MatMul", "y_float w", "y"),
    ]  # fmt: skip
    for index, name in enumerate(["x_Q", "x_DQ", "w_DQ", "y_Q"]):
        nodes[index].name = name
    weights = {"w": random(6, 6), "w_scale": random(6, 6, seed=1), "w_dequantized": random(6, seed=2)}
    model = graph(nodes, weights, {"x": ["n", 6], "x_scale": ["n", 6]}, {"y": None})
    feed = {"x": random(64, 6), "x_scale": random(64, 6, seed=3)}
    written = quantized(model, feed, dialect)
    names = [tensor.name for tensor in written.graph.initializer] + [
        n for made in written.graph.node for n in made.output
    ]
    assert len(set(names)) == len(names)
    assert len({made.name for made in written.graph.node}) == len(written.graph.node)
    assert decibels(run(model, feed)["y"], run(written, feed)["y"]) > 25


# --- INT32 biases


def biased(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    return graph([node("Gemm", "x w b", "y", transB=1)], {"w": weight, "b": bias}, {"x": ["n", 3]}, {"y": None})


def test_int32_bias_is_within_half_a_step(network: Network) -> None:
    written = write_qdq(network.model, network.params, U8)
    checked = 0
    for made in network.model.graph.node:
        if made.op_type not in ("Conv", "Gemm"):
            continue
        bias = initializer(network.model, made.input[2]).astype(np.float64)
        integers = initializer(written, f"{made.input[2]}_quantized")
        scale = initializer(written, f"{made.input[2]}_scale").astype(np.float64)
        assert integers.dtype == np.int32
        assert (np.abs(integers * scale - bias) <= scale / 2 * (1 + 1e-5) + 1e-12).all()
        data = initializer(written, f"{made.input[0]}_scale").astype(np.float64)
        np.testing.assert_allclose(scale, data * initializer(written, f"{made.input[1]}_scale"), rtol=1e-6)
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("size", [1e-12, 1e-30, 0.0])
@EVERY_DIALECT
def test_a_channel_with_next_to_no_weight_keeps_its_bias(size: float, dialect: Dialect) -> None:
    """As after pruning or in a dead filter: at the weight's own scale the bias would not fit in 32 bits."""
    weight, bias = random(4, 3), np.array([0.5, -3.0, 2.0, 1.0], np.float32)
    weight[1] = np.float32(size) * np.array([1, -1, 0.5], np.float32)
    model, feed = biased(weight, bias), {"x": random(64, 3)}
    written = quantized(model, feed, dialect)
    y = run(written, feed)["y"]
    np.testing.assert_allclose(y[:, 1], -3.0, atol=5e-4)
    assert decibels(run(model, feed)["y"], y) > 28
    if dialect.int32_bias and size:  # a channel of zeros has the scale of the largest, which leaves room enough
        assert abs(int(initializer(written, "b_quantized")[1])) == pytest.approx(2**30, rel=1e-5)


def test_nothing_at_all_is_written_without_a_warning() -> None:
    model = biased(np.full((4, 3), 1e-38, np.float32), np.zeros(4, np.float32))
    params = calibrate(model, {"x": random(8, 3, scale=1e-12)})
    for dialect in DIALECTS:
        written = write_qdq(model, params, dialect)
        for tensor in written.graph.initializer:
            values = numpy_helper.to_array(tensor)
            assert np.isfinite(values).all()
            if tensor.name.endswith("_scale"):
                assert (values > 0).all(), tensor.name


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
@EVERY_DIALECT
def test_a_bias_row(shape: tuple[int, ...], dialect: Dialect) -> None:
    model, feed = biased(random(4, 3), random(4, seed=1).reshape(shape)), {"x": random(64, 3)}
    assert decibels(run(model, feed)["y"], run(quantized(model, feed, dialect), feed)["y"]) > 28
