"""Cross-layer equalization: the function stays, channels of two layers get weights of one size, INT8 comes back."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from edgesmith.compressor.int8.recover_equalize import constants, equalize, pairs, sizes, tensors
from edgesmith.exporters.sessions import taps
from tests.compressor.int8.depthwise import Digits, rescaled
from tests.exporters.graphs import graph, initializer, node, random, run

RELU6 = {"zero": np.zeros((), np.float32), "six": np.full((), 6, np.float32)}


def equalized(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, str]:
    return equalize(model, taps.channel_ranges(model, [feed], tensors(model)))


def same_function(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The equalized graph, once it has been seen to compute what the graph computes."""
    changed, _ = equalized(model, feed)
    (expected,), (actual,) = run(model, feed).values(), run(changed, feed).values()
    assert np.abs(expected - actual).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))
    return changed


def test_a_layer_that_overflows_is_left_alone() -> None:
    weights = {"w": np.array([[1.0, 3e38]], np.float32), "v": np.array([[1.0], [0.0]], np.float32)}
    nodes = [node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "y")]
    model = graph(nodes, weights, {"x": ["n", 1]}, {"y": None})
    changed, told = equalized(model, {"x": np.array([[2.0]], np.float32)})
    assert told == "equalized 0 pairs of layers"
    assert initializer(changed, "w").tolist() == weights["w"].tolist()


def test_two_products_by_hand() -> None:
    """Largest weights (4, 1) before and (1, 16) behind: s = (2, 1/4); channel 1 may grow by 4 as its peak is small."""
    weights = {"w": np.array([[4.0, 1.0]], np.float32), "b": np.array([2.0, 0.5], np.float32)}
    weights["v"] = np.array([[1.0], [16.0]], np.float32)
    model = graph(
        [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "y")],
        weights,
        {"x": ["n", 1]},
        {"y": None},
    )
    changed, told = equalized(model, {"x": np.array([[1.5], [-1]], np.float32)})
    np.testing.assert_allclose(initializer(changed, "w"), [[2, 4]], rtol=1e-6)
    np.testing.assert_allclose(initializer(changed, "b"), [1, 2], rtol=1e-6)
    np.testing.assert_allclose(initializer(changed, "v"), [[2], [4]], rtol=1e-6)
    assert told == "equalized 1 pairs of layers"


def test_no_channel_outgrows_the_largest() -> None:
    """By weights alone channel 1 would grow by 16; its peak of 1 may only reach channel 0's 4."""
    weights = {"w": np.array([[4.0, 1.0]], np.float32), "v": np.array([[4.0], [256.0]], np.float32)}
    model = graph(
        [node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "y")],
        weights,
        {"x": ["n", 1]},
        {"y": None},
    )
    changed, _ = equalized(model, {"x": np.ones((1, 1), np.float32)})
    np.testing.assert_allclose(initializer(changed, "w"), [[4, 4]], rtol=1e-6)
    np.testing.assert_allclose(initializer(changed, "v"), [[4], [64]], rtol=1e-6)


def image_model(nodes: list[onnx.NodeProto], size: int = 6, **weights: np.ndarray) -> onnx.ModelProto:
    """A graph over images `(n, 3, size, size)` whose first layer has channels of very different sizes."""
    weights = {"w": wide(random(4, 3, 3, 3)), "b": wide(random(4, seed=1)), **weights}
    return graph(nodes, weights, {"x": ["n", 3, size, size]}, {"y": None})


def wide(weight: np.ndarray) -> np.ndarray:
    return weight * np.array([100, 1e-3, 1, 7], np.float32).reshape(-1, *[1] * (weight.ndim - 1))


FIRST = node("Conv", "x w b", "h")
PAIRS = {
    "depthwise": image_model([FIRST, node("Relu", "h", "r"), node("Conv", "r v", "y", group=4)], v=random(4, 1, 3, 3)),
    "grouped": image_model([FIRST, node("LeakyRelu", "h", "r"), node("Conv", "r v", "y", group=2)], v=random(6, 2, 1, 1)),
    "linear": image_model([FIRST, node("Conv", "h v", "y")], v=random(5, 4, 3, 3)),
    "flat": image_model(
        [FIRST, node("Relu", "h", "r"), node("MaxPool", "r", "m", kernel_shape=[2, 2], strides=[2, 2]),
         node("Flatten", "m", "f"), node("Gemm", "f v", "y")], v=random(16, 5),
    ),
    "reshaped": image_model(
        [FIRST, node("Relu", "h", "r"), node("Reshape", "r shape", "f"), node("Gemm", "f v", "y", transB=1)],
        v=random(5, 64), shape=np.array([-1, 64]),
    ),
    "average": image_model(
        [FIRST, node("Relu", "h", "r"), node("GlobalAveragePool", "r", "m"), node("Flatten", "m", "f"),
         node("MatMul", "f v", "y")], v=random(4, 5),
    ),
    "products": graph(
        [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        {"w": wide(random(4, 3)), "b": wide(random(4, seed=1)), "v": random(4, 5)}, {"x": ["n", 3]}, {"y": None},
    ),
}  # fmt: skip
NO_PAIRS = {
    "read twice": image_model([FIRST, node("Conv", "h v", "c"), node("GlobalAveragePool", "h", "m"), node("Add", "c m", "y")], v=random(4, 4, 3, 3)),
    "other activation": image_model([FIRST, node("Sigmoid", "h", "r"), node("Conv", "r v", "y")], v=random(5, 4, 3, 3)),
    "clipped elsewhere": image_model([FIRST, node("Clip", "h one", "r"), node("Conv", "r v", "y")], v=random(5, 4, 3, 3), one=np.ones((), np.float32)),
    "columns are not channels": image_model([FIRST, node("Relu", "h", "r"), node("MatMul", "r v", "y")], v=random(4, 5)),
    "flattened across samples": image_model([FIRST, node("Reshape", "h shape", "f"), node("Gemm", "f v", "y")], v=random(4, 5), shape=np.array([-1, 4])),
    "shared weight": graph([node("MatMul", "x w", "h"), node("MatMul", "h w", "y")], {"w": random(3, 3)}, {"x": ["n", 3]}, {"y": None}),
    "not a constant": graph([node("MatMul", "x w", "h"), node("MatMul", "h z", "y")], {"w": random(3, 3)}, {"x": ["n", 3], "z": [3, 3]}, {"y": None}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_keeps_its_function_and_gets_weights_of_one_size(kind: str) -> None:
    model = PAIRS[kind]
    feed = {"x": random(40, *[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:], seed=4)}
    assert len(pairs(model)) == 1
    before, after = ratio(model), ratio(same_function(model, feed))
    assert after < before / 50, "channels that differed by 1e5 do so no more, but for what their peaks allow"


def ratio(model: onnx.ModelProto) -> float:
    """How much the larger of a channel's two weights passes the smaller, at worst."""
    (pair,) = pairs(model)
    first, second = sizes(pair, constants(model, [pair]))
    return float(np.exp(np.abs(np.log(first / second)).max()))


@pytest.mark.parametrize("kind", NO_PAIRS)
def test_what_is_no_pair_is_left_alone(kind: str) -> None:
    assert pairs(NO_PAIRS[kind]) == []
    assert equalize(NO_PAIRS[kind], {}) == (NO_PAIRS[kind], "equalized 0 pairs of layers")


def test_a_channel_that_relu6_cuts_off_keeps_its_size() -> None:
    """Channel 0 reaches 8 and is cut; channel 1 reaches 1 and may grow to 6; channel 2 has peak 5 and wants to shrink."""
    weights = {"w": np.array([[8.0, 1.0, 5.0]], np.float32), "v": np.array([[1.0], [1e4], [0.2]], np.float32)}
    nodes = [node("MatMul", "x w", "h"), node("Clip", "h zero six", "r"), node("Gemm", "r v", "y")]
    model = graph(nodes, weights | RELU6, {"x": ["n", 1]}, {"y": None})
    feed = {"x": np.linspace(-1, 1, 21, dtype=np.float32)[:, None]}
    changed, told = equalized(model, feed)
    np.testing.assert_allclose(initializer(changed, "w"), [[8, 6, 1]], rtol=1e-5)
    np.testing.assert_allclose(initializer(changed, "v")[:, 0], [1, 1e4 / 6, 1], rtol=1e-5)
    assert told == "equalized 1 pairs of layers; 1 channels that a Clip cuts off keep their size"
    np.testing.assert_allclose(run(changed, feed)["y"], run(model, feed)["y"], rtol=1e-5)


def test_a_dead_channel_is_left_alone() -> None:
    weights = {"w": np.array([[4.0, 0.0, 1.0]], np.float32), "v": np.array([[1.0], [3.0], [0.0]], np.float32)}
    model = graph([node("MatMul", "x w", "h"), node("MatMul", "h v", "y")], weights, {"x": ["n", 1]}, {"y": None})
    changed, _ = equalized(model, {"x": np.ones((1, 1), np.float32)})
    np.testing.assert_allclose(initializer(changed, "w"), [[2, 0, 1]], rtol=1e-5)
    np.testing.assert_allclose(initializer(changed, "v"), [[2], [3], [0]], rtol=1e-5)


def test_rescaling_is_undone_and_int8_comes_back(depthwise: Digits) -> None:
    """The paper's claim: per tensor a rescaled depthwise network is lost, and equalization alone recovers it."""
    broken = rescaled(depthwise.model, 16)
    assert len(pairs(broken)) == 7
    np.testing.assert_allclose(depthwise.logits(broken), depthwise.logits(depthwise.model), atol=1e-4)
    original = depthwise.accuracy(depthwise.model)
    lost = original - depthwise.accuracy(depthwise.int8(broken))
    left = original - depthwise.accuracy(depthwise.int8(broken, ["equalize"]))
    assert original > 0.94
    assert lost > 0.3
    assert left < 0.1 * lost
    changed = same_function(broken, {"image": depthwise.images})
    weights = [constants(changed, pairs(changed)), constants(broken, pairs(broken))]
    spread = [
        np.log10(
            np.concatenate([np.ravel(size.max() / size) for pair in pairs(broken) for size in sizes(pair, values)])
        )
        for values in weights
    ]
    assert np.median(spread[0]) < np.median(spread[1]) / 2, "channels lie closer together, in decades"
