"""Smoothing: outliers behind a normalization move into the weights, the function stays, INT8 gets closer."""

import numpy as np
import onnx
import pytest

from edgesmith.compressor.int8.recover_smooth import sites, smooth, tensors
from edgesmith.compressor.int8.smooth_scale import best_scale, noise
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.dynamic import write_int8
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import weight_params
from edgesmith.exporters.sessions import taps
from tests.exporters.graphs import S8, U8, decibels, graph, initializer, node, quantized, random, run

WIDTH = 16
GAIN = np.where(np.arange(WIDTH) == 3, 60, 1).astype(np.float32)  # one channel is an outlier, as in language models
NORM = node("LayerNormalization", "x gain shift", "z")
PRODUCTS = [node("MatMul", "z q", "a"), node("Gemm", "z k kb", "b", transB=1), node("Add", "a b", "y")]
WEIGHTS = {
    "gain": GAIN, "shift": random(WIDTH, seed=1), "q": random(WIDTH, 8, seed=2), "k": random(8, WIDTH, seed=3),
    "kb": random(8, seed=4),
}  # fmt: skip
FEED = {"x": random(200, WIDTH, seed=5)}


def made(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",), **weights: np.ndarray) -> onnx.ModelProto:
    used = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in {**WEIGHTS, **weights}.items() if name in used}
    return graph(nodes, constants, {"x": ["n", WIDTH]}, dict.fromkeys(outputs), opset=17)


def smoothed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    return smooth(model, taps.channel_ranges(model, [FEED], tensors(model)))


WRITTEN_OUT = [
    node("ReduceMean", "x", "mean", axes=[-1]), node("Sub", "x mean", "d"), node("Mul", "d d", "dd"),
    node("ReduceMean", "dd", "v", axes=[-1]), node("Sqrt", "v", "s"), node("Div", "d s", "n"),
]  # fmt: skip
NORMS = {
    "LayerNormalization": [NORM],
    "gain alone": [node("LayerNormalization", "x gain", "z")],
    "written out": [*WRITTEN_OUT, node("Mul", "n gain", "g"), node("Add", "shift g", "z")],
    "gain alone, written out": [*WRITTEN_OUT, node("Mul", "gain n", "z")],
}


@pytest.mark.parametrize("kind", NORMS)
def test_the_function_stays_and_int8_gets_closer(kind: str) -> None:
    model = made([*NORMS[kind], *PRODUCTS])
    changed, told = smoothed(model)
    assert told == "smoothed 1 normalizations"
    expected, actual = run(model, FEED)["y"], run(changed, FEED)["y"]
    assert np.abs(expected - actual).max() <= 1e-5 * np.abs(expected).max()
    before, after = (decibels(expected, run(quantized(m, FEED, S8), FEED)["y"]) for m in (model, changed))
    assert after > before + 6


def test_the_scale_is_that_of_the_paper() -> None:
    """Equation 4 over both products, at the share of the burden that leaves the least noise."""
    model = made([NORM, *PRODUCTS])
    changed, _ = smoothed(model)
    normal = (FEED["x"] - FEED["x"].mean(1, keepdims=True)) / FEED["x"].std(1, keepdims=True)
    values = normal * GAIN + WEIGHTS["shift"]
    scale, _ = best_scale(np.stack([values.min(0), values.max(0)]), [WEIGHTS["q"], WEIGHTS["k"].T])
    np.testing.assert_allclose(initializer(changed, "gain"), GAIN / scale, rtol=1e-3)
    np.testing.assert_allclose(initializer(changed, "shift"), WEIGHTS["shift"] / scale, rtol=1e-3)
    np.testing.assert_allclose(initializer(changed, "q"), WEIGHTS["q"] * scale[:, None], rtol=1e-3)
    np.testing.assert_allclose(initializer(changed, "k"), WEIGHTS["k"] * scale, rtol=1e-3)
    np.testing.assert_array_equal(initializer(changed, "kb"), WEIGHTS["kb"])


def test_the_noise_that_is_expected_is_the_noise_that_comes() -> None:
    """Rounded in numpy, with one outlier channel: the estimate is within 2 dB at every scale that matters."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((4000, WIDTH)) * GAIN, rng.standard_normal((WIDTH, 64))
    ranges = np.stack([x.min(0), x.max(0)])
    for share in (0.3, 0.5, 0.8):
        scale = np.abs(x).max(0) ** share / np.abs(weight).max(1) ** (1 - share)
        step = (max((x / scale).max(), 0) - min((x / scale).min(), 0)) / 255
        grid = np.abs(weight * scale[:, None]).max(0) / 127
        product = (np.rint(x / scale / step) * step) @ (np.rint(weight * scale[:, None] / grid) * grid)
        came = ((product - x @ weight) ** 2).mean(0).sum()
        assert abs(10 * np.log10(noise(scale, ranges, [weight]) / came)) < 3
    scale, gain = best_scale(ranges, [weight])
    assert gain > 10 and noise(scale, ranges, [weight]) <= noise(np.ones(WIDTH), ranges, [weight]) / gain * 1.001


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_where_others_read_the_norm_too_a_mul_divides(kind: str) -> None:
    """As in BERT, whose residuals read the norms. In front of a Gemm, as convolutional networks end, none is put."""
    model = made([NORM, node(kind, "z w", "a"), node("Add", "a z", "y")], w=random(WIDTH, WIDTH))
    changed, told = smoothed(model)
    expected = run(model, FEED)["y"]
    assert np.abs(expected - run(changed, FEED)["y"]).max() <= 1e-5 * np.abs(expected).max()
    if kind == "Gemm":
        assert (changed, told) == (model, "smoothed 0 normalizations")
        return
    assert told == "smoothed 0 normalizations, 1 other inputs of products"
    assert [each.op_type for each in changed.graph.node] == ["LayerNormalization", "Mul", "MatMul", "Add"]
    before, after = (decibels(expected, run(dynamic_int8(each), FEED)["y"]) for each in (model, changed))
    assert after > before + 6


def dynamic_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    dialect = Dialect(**{**U8.__dict__, "name": "dynamic", "dynamic": True})
    return write_int8(model, weight_params(model, place(model)), dialect)


NO_SITE = {
    "a residual reads it too": made([NORM, node("MatMul", "z w", "a"), node("Add", "a z", "y")], w=random(WIDTH, WIDTH)),
    "it is an output": made([NORM, node("MatMul", "z q", "y")], outputs=("y", "z")),
    "the gain is shared": made([NORM, node("MatMul", "z q", "a"), node("LayerNormalization", "x gain shift", "y")], ("a", "y")),
    "the weight is shared": made([NORM, node("MatMul", "z w", "a"), node("MatMul", "a w", "y")], w=random(WIDTH, WIDTH)),
    "one number for all": made([node("Mul", "x half", "z"), node("MatMul", "z q", "y")], half=np.full(1, 0.5, np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_SITE)
def test_where_the_norm_cannot_take_it_nothing_changes(kind: str) -> None:
    model = NO_SITE[kind]
    assert sites(model) == []
    assert smooth(model, {}) == (model, "smoothed 0 normalizations")


def test_a_channel_of_zeros_is_left_alone() -> None:
    gain, shift, weight = GAIN.copy(), WEIGHTS["shift"].copy(), WEIGHTS["q"].copy()
    gain[5] = shift[5] = 0
    weight[7] = 0
    model = made([NORM, node("MatMul", "z q", "y")], gain=gain, shift=shift, q=weight)
    changed, _ = smoothed(model)
    np.testing.assert_array_equal(initializer(changed, "q")[[5, 7]], weight[[5, 7]])
    assert initializer(changed, "gain")[7] == gain[7]
