"""Bias correction: over the calibration samples the mean error of every channel is gone, behind all layers before."""

import dataclasses

import numpy as np
import onnx

from edgesmith.compressor.int8.recover_bias import correct_bias
from edgesmith.exporters.int8.layer import Layer
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.stepwise import walk
from tests.compressor.int8.depthwise import DIALECT, Digits, rescaled
from tests.exporters.graphs import S8, calibrate, graph, initializer, node, run

PLENTY = 1 << 30


def test_by_hand() -> None:
    """Weights 1 and 0.4 on a grid of 1 / 127 * 127 = 1: 0.4 becomes 0, so the output lacks 0.4 * mean(x)."""
    weights = {"w": np.array([[1.0], [0.4]], np.float32), "b": np.array([5.0], np.float32)}
    model = graph([node("Gemm", "x w b", "y")], weights, {"x": ["n", 2]}, {"y": None})
    feed = {"x": np.array([[127, 0], [0, 64], [1, 65], [2, 1]], np.float32)}
    params = calibrate(model, feed)
    params["w"] = dataclasses.replace(params["w"], scale=np.ones(1, np.float32))
    changed = walk(model, place(model), params, S8, [feed], correct_bias, PLENTY).model
    np.testing.assert_allclose(initializer(changed, "b"), 5.0 + 0.4 * feed["x"][:, 1].mean(), rtol=1e-5)
    np.testing.assert_array_equal(initializer(changed, "w"), weights["w"])


def mean_errors(digits: Digits, model: onnx.ModelProto, other: onnx.ModelProto) -> list[np.ndarray]:
    """Per layer, the mean error of each channel relative to the spread of its values.

    `model` is the float graph, `other` it with what bias correction changed.
    """
    errors: list[np.ndarray] = []

    def visit(layer: Layer) -> Layer:
        wanted = np.concatenate(
            [np.moveaxis(v, layer.channel_axis, 0).reshape(v.shape[layer.channel_axis], -1) for v in layer.wanted], 1
        )
        given = layer.run(layer.quantized, None if layer.bias is None else biases[layer.node.name])
        actual = np.concatenate(
            [np.moveaxis(v, layer.channel_axis, 0).reshape(v.shape[layer.channel_axis], -1) for v in given], 1
        )
        errors.append(np.abs(actual.mean(1) - wanted.mean(1)) / (wanted.std(1) + 1e-6))
        return dataclasses.replace(layer, bias=biases[layer.node.name])

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in other.graph.initializer}
    biases = {made.name: constants[made.input[2]] for made in other.graph.node if made.op_type in ("Conv", "Gemm")}
    walk(model, place(model), digits.params(model), DIALECT, digits.batches(), visit, PLENTY)
    return errors


def test_the_mean_error_of_every_channel_goes_to_zero(depthwise: Digits) -> None:
    """On a network that one scale per tensor harms: 8 layers, each with the corrected ones before it."""
    model = rescaled(depthwise.model, 4)
    changed = walk(
        model, place(model), depthwise.params(model), DIALECT, depthwise.batches(), correct_bias, PLENTY
    ).model
    before, after = mean_errors(depthwise, model, model), mean_errors(depthwise, model, changed)
    assert len(before) == len(after) == 8
    assert max(error.max() for error in before) > 0.3, "in standard deviations"
    assert max(error.max() for error in after) < 1e-3
    expected = depthwise.logits(model)
    plain, corrected = (depthwise.logits(depthwise.int8(model, names)) for names in ((), ("bias-correction",)))
    assert np.abs((corrected - expected).mean(0)).max() < 0.3 * np.abs((plain - expected).mean(0)).max()
    assert np.square(corrected - expected).mean() < 0.6 * np.square(plain - expected).mean()


def test_a_product_without_an_add_has_nowhere_to_put_it() -> None:
    model = graph([node("MatMul", "x w", "y")], {"w": np.ones((2, 1), np.float32)}, {"x": ["n", 2]}, {"y": None})
    feed = {"x": np.ones((3, 2), np.float32)}
    changed = walk(model, place(model), calibrate(model, feed), S8, [feed], correct_bias, PLENTY).model
    assert changed == model
    assert run(changed, feed)["y"].tolist() == [[2]] * 3
