"""Smoothing: outliers behind a normalization move into the weights, the function stays, INT8 gets closer."""

import numpy as np
import onnx
import pytest

from edgesmith.compressor.recover_smooth import sites, smooth, tensors
from edgesmith.exporters import taps
from tests.exporters.graphs import S8, decibels, graph, initializer, node, quantized, random, run

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
    """s_j = sqrt(max|X_j| / max|W_j|), the largest weight over both products."""
    model = made([NORM, *PRODUCTS])
    changed, _ = smoothed(model)
    normal = (FEED["x"] - FEED["x"].mean(1, keepdims=True)) / FEED["x"].std(1, keepdims=True)
    activations = np.abs(normal * GAIN + WEIGHTS["shift"]).max(0)
    weights = np.maximum(np.abs(WEIGHTS["q"]).max(1), np.abs(WEIGHTS["k"]).max(0))
    scale = np.sqrt(activations / weights)
    np.testing.assert_allclose(initializer(changed, "gain"), GAIN / scale, rtol=1e-3)
    np.testing.assert_allclose(initializer(changed, "shift"), WEIGHTS["shift"] / scale, rtol=1e-3)
    np.testing.assert_allclose(initializer(changed, "q"), WEIGHTS["q"] * scale[:, None], rtol=1e-3)
    np.testing.assert_allclose(initializer(changed, "k"), WEIGHTS["k"] * scale, rtol=1e-3)
    np.testing.assert_array_equal(initializer(changed, "kb"), WEIGHTS["kb"])


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
