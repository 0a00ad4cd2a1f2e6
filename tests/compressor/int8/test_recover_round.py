"""AdaRound: rounding that keeps a layer's output, on the unchanged grid."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from edgesmith.compressor.int8 import recover_rows
from edgesmith.compressor.int8.recover_round import round_weights
from edgesmith.exporters.int8.layer import Layer
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import write_qdq
from edgesmith.exporters.int8.stepwise import walk
from tests.compressor.int8.depthwise import DIALECT, Digits, rescaled
from tests.exporters.graphs import S8, U8_7, calibrate, decibels, graph, initializer, node, random, run

PLENTY = 1 << 30


def layers(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[Layer]:
    found: list[Layer] = []
    walk(model, place(model), calibrate(model, feed), S8, [feed], lambda layer: found.append(layer) or layer, PLENTY)
    return found


def one(nodes: list[onnx.NodeProto], shape: tuple[int, ...], **weights: np.ndarray) -> Layer:
    """The only layer of a graph, its inputs in float so that what it wants follows from them exactly."""
    model = graph(nodes, weights, {"x": ["n", *shape[1:]]}, {"y": None})
    feed = {"x": random(*shape, seed=7)}
    (layer,) = layers(model, feed)
    return dataclasses.replace(layer, inputs=[feed["x"][: len(feed["x"]) // 2], feed["x"][len(feed["x"]) // 2 :]],
                               wanted=np.split(layer.wanted[0], 2))  # fmt: skip


CONV = {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1]}
ROWS = {
    "plain": (one([node("Conv", "x w b", "y")], (6, 3, 7, 6), w=random(4, 3, 3, 2), b=random(4))),
    "grouped": one([node("Conv", "x w b", "y", group=2, **CONV)], (6, 4, 7, 7), w=random(6, 2, 3, 3), b=random(6)),
    "depthwise": one([node("Conv", "x w", "y", group=4, strides=[2, 1], **CONV)], (6, 4, 7, 7), w=random(4, 1, 3, 3)),
    "dilated": one([node("Conv", "x w", "y", dilations=[2, 1], strides=[1, 2])], (6, 2, 9, 9), w=random(4, 2, 3, 3)),
    "same": one([node("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[2, 2])], (6, 2, 9, 8), w=random(4, 2, 3, 2)),
    "sequence": one([node("Conv", "x w", "y", pads=[1, 1])], (6, 2, 9), w=random(4, 2, 3)),
    "gemm": one([node("Gemm", "x w b", "y", transB=1)], (8, 5), w=random(4, 5), b=random(4)),
    "columns": one([node("Gemm", "x w b", "y")], (8, 5), w=random(5, 4), b=random(4)),
    "tokens": one([node("MatMul", "x w", "y")], (8, 3, 5), w=random(5, 4)),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_layer_is_one_product_of_rows(kind: str) -> None:
    """`wanted = inputs @ weight.T + bias` for the rows drawn, whatever strides, pads, dilations and groups."""
    layer = ROWS[kind]
    rows = recover_rows.draw(layer, np.random.default_rng(0))
    weight = recover_rows.as_matrix(layer.weight, layer)
    bias = 0.0 if layer.bias is None else layer.bias.reshape(len(weight), 1, -1)
    made = rows.inputs @ weight.transpose(0, 2, 1) + bias
    np.testing.assert_allclose(made, rows.wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(recover_rows.from_matrix(weight, layer), layer.weight)
    positions = np.prod(layer.wanted[0].shape) // layer.weight.shape[layer.axis]
    assert rows.inputs.shape[1] == 2 * min(positions, 2048)


def correlated() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Inputs that rise and fall together: rounding errors add up unless one goes up where another goes down."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((512, 1)) + 0.05 * rng.standard_normal((512, 24))).astype(np.float32)
    weights = {"w": (rng.standard_normal((24, 12)) / 5).astype(np.float32), "b": random(12)}
    return graph([node("Gemm", "x w b", "h"), node("Relu", "h", "y")], weights, {"x": ["n", 24]}, {"y": None}), {"x": x}


def test_it_beats_the_nearest_rounding_on_its_grid() -> None:
    model, feed = correlated()
    params, placed = calibrate(model, feed), place(model)
    params["w"] = dataclasses.replace(params["w"], scale=params["w"].scale * 8)  # four bits, where rounding matters
    changed = walk(model, placed, params, S8, [feed], round_weights, PLENTY).model
    steps = initializer(changed, "w") / params["w"].scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps - initializer(model, "w") / params["w"].scale).max() < 1 + 1e-4, "a neighbour, up or down"
    expected = run(model, feed)["y"]
    nearest, learned = (run(write_qdq(each, params, S8), feed)["y"] for each in (model, changed))
    assert decibels(expected, learned) > decibels(expected, nearest) + 6
    written = write_qdq(changed, params, S8)
    np.testing.assert_array_equal(initializer(written, "w_quantized"), np.rint(steps))


def test_seven_bits_have_their_own_grid() -> None:
    model, feed = correlated()
    params = calibrate(model, feed)
    changed = walk(model, place(model), params, U8_7, [feed], round_weights, PLENTY).model
    steps = initializer(changed, "w") / (params["w"].scale * np.float32(127 / 63))
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert np.abs(steps).max() <= 63.001


def test_no_output_channel_gets_worse_than_nearest() -> None:
    """White inputs leave little to gain at eight bits; a channel that gains nothing keeps its nearest rounding."""
    model = graph([node("Gemm", "x w", "y")], {"w": random(6, 40)}, {"x": ["n", 6]}, {"y": None})
    feed = {"x": random(400, 6, seed=1)}
    (layer,) = layers(model, feed)
    learned = round_weights(layer).weight
    expected = layer.wanted[0]
    errors = [np.square(layer.inputs[0] @ weight - expected).mean(0) for weight in (layer.quantized, learned)]
    assert (errors[1] <= errors[0] * 1.1).all()
    assert errors[1].sum() < errors[0].sum()


def test_the_same_rows_give_the_same_rounding() -> None:
    model, feed = correlated()
    (layer,) = layers(model, feed)
    torch.manual_seed(1)
    first = round_weights(layer).weight
    functional.relu(torch.rand(3))
    np.testing.assert_array_equal(first, round_weights(layer).weight)


def test_tied_weights_stay() -> None:
    nodes = [node("Gemm", "x w", "h"), node("Gemm", "h w", "y")]
    model = graph(nodes, {"w": random(5, 5)}, {"x": ["n", 5]}, {"y": None})
    feed = {"x": random(64, 5, seed=1)}
    assert walk(model, place(model), calibrate(model, feed), S8, [feed], round_weights, PLENTY).model == model


def test_a_network_at_a_coarse_grid(depthwise: Digits) -> None:
    """Per tensor and rescaled: rounding alone, layer by layer, brings the logits several decibels closer."""
    model = rescaled(depthwise.model, 4)
    expected = depthwise.logits(model)
    nearest, learned = (depthwise.logits(depthwise.int8(model, names)) for names in ((), ("round",)))
    assert decibels(expected, learned) > decibels(expected, nearest) + 3
    assert DIALECT.weight_bits == 8
