"""The one writer, in every dialect: what stands in the file, and how close the file computes to the float graph."""

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st

from edgesmith.core.errors import QuantizationError
from edgesmith.core.values import QuantParams
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import activation_params, weight_params, write_qdq

from ..conftest import Network
from ..graphs import (
    ASYMMETRIC,
    DIALECTS,
    S8,
    S8_BIAS,
    U8,
    U8_7,
    calibrate,
    decibels,
    graph,
    initializer,
    kinds,
    node,
    quantized,
    random,
    run,
)

EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


def dequantized(model: onnx.ModelProto, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A weight as the file stands for it, and half a step of its scale."""
    (made,) = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == f"{name}_quantized"]
    (axis,) = [attribute.i for attribute in made.attribute if attribute.name == "axis"]
    integers, scale = initializer(model, made.input[0]), initializer(model, made.input[1])
    assert not initializer(model, made.input[2]).any()
    shape = [-1 if index == axis else 1 for index in range(integers.ndim)]
    return integers * scale.astype(np.float64).reshape(shape), scale.reshape(shape) / 2


# --- weights


@EVERY_DIALECT
def test_weights_come_back_within_half_a_step(network: Network, dialect: Dialect) -> None:
    written = write_qdq(network.model, network.params, dialect)
    weights = place(network.model).weights
    assert weights
    for name in weights:
        original = initializer(network.model, name)
        restored, half = dequantized(written, name)
        assert (np.abs(restored - original) <= half * (1 + 1e-5)).all()
        assert name not in {tensor.name for tensor in written.graph.initializer}, "the float weight is gone"


@pytest.mark.parametrize(
    ("kind", "shape", "axis", "attributes"),
    [
        ("Conv", (5, 3, 2, 2), 0, {}),
        ("Gemm", (3, 5), 1, {}),
        ("Gemm", (5, 3), 0, {"transB": 1}),
        ("MatMul", (3, 5), 1, {}),
    ],
)
@EVERY_DIALECT
def test_one_scale_per_output_channel(
    kind: str, shape: tuple[int, ...], axis: int, attributes: dict[str, int], dialect: Dialect
) -> None:
    sizes = np.array([100, 1e-3, 1, 7, 0.5], np.float32)  # channels that no common scale could hold
    weight = random(*shape) * sizes.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    data = (4, 3, 4, 4) if kind == "Conv" else (4, 3)
    model = graph([node(kind, "x w", "y", **attributes)], {"w": weight}, {"x": ["n", *data[1:]]}, {"y": None})
    feed = {"x": random(*data)}
    written = quantized(model, feed, dialect)
    limit = 2 ** (dialect.weight_bits - 1) - 1
    others = tuple(index for index in range(weight.ndim) if index != axis)
    np.testing.assert_allclose(initializer(written, "w_scale"), np.abs(weight).max(others) / limit, rtol=1e-6)
    assert (np.abs(initializer(written, "w_quantized")).max(others) == limit).all()
    expected, actual = run(model, feed)["y"], run(written, feed)["y"]
    floor = 30 if dialect.weight_bits == 8 else 25
    assert decibels(expected[:, 0], actual[:, 0]) > floor


def test_seven_bits_never_exceed_63(network: Network) -> None:
    written = write_qdq(network.model, network.params, U8_7)
    for name in place(network.model).weights:
        assert np.abs(initializer(written, f"{name}_quantized")).max() == 63


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = random(5, 3)
    weight[2] = 0
    model = graph([node("Gemm", "x w", "y", transB=1)], {"w": weight}, {"x": ["n", 3]}, {"y": None})
    params = weight_params(model, place(model))["w"]
    assert params.axis == 0 and params.scale.shape == (5,) and params.scale[2] == np.abs(weight).max() / np.float32(127)
    assert not run(quantized(model, {"x": random(8, 3)}, U8), {"x": random(8, 3)})["y"][:, 2].any()


def test_weight_params_are_of_the_largest_weight() -> None:
    model = graph(
        [node("MatMul", "x w", "y")],
        {"w": np.array([[1, -254.0], [-127, 2]], np.float32)},
        {"x": ["n", 2]},
        {"y": None},
    )
    params = weight_params(model, place(model))["w"]
    np.testing.assert_array_equal(params.scale, np.array([1, 2], np.float32))
    assert (params.low, params.high, params.axis, params.bits) == (-254, 254, 1, 8)


@EVERY_DIALECT
def test_one_scale_for_the_whole_tensor(network: Network, dialect: Dialect) -> None:
    placed = place(network.model)
    params = network.params | weight_params(network.model, placed, per_tensor=True)
    written = write_qdq(network.model, params, dialect)
    limit = 2 ** (dialect.weight_bits - 1) - 1
    for name in placed.weights:
        original = initializer(network.model, name).astype(np.float64)
        integers, scale = initializer(written, f"{name}_quantized"), initializer(written, f"{name}_scale")
        assert params[name].axis is None and scale.shape == initializer(written, f"{name}_zero_point").shape == ()
        assert scale == pytest.approx(np.abs(original).max() / limit, rel=1e-6)
        assert np.abs(integers).max() == limit
        assert (np.abs(integers * float(scale) - original) <= float(scale) / 2 * (1 + 1e-5)).all()
    (expected,), (actual,) = run(network.model, network.feed).values(), run(written, network.feed).values()
    assert decibels(expected, actual) > (25 if dialect.weight_bits == 8 else 20)


def test_one_scale_leaves_room_for_the_largest_bias() -> None:
    weight, bias = np.full((3, 2), 1e-12, np.float32), np.array([0.5, -2.0], np.float32)
    model = graph([node("Gemm", "x w b", "y")], {"w": weight, "b": bias}, {"x": ["n", 3]}, {"y": None})
    feed = {"x": random(8, 3)}
    params = calibrate(model, feed) | weight_params(model, place(model), per_tensor=True)
    written = write_qdq(model, params, U8)
    assert initializer(written, "w_scale").shape == initializer(written, "b_scale").shape == ()
    assert np.abs(initializer(written, "b_quantized").astype(np.int64)).max() == pytest.approx(2**30, rel=1e-5)
    np.testing.assert_allclose(run(written, feed)["y"], np.tile(bias, (8, 1)), atol=5e-4)


# --- activations


def test_activation_params() -> None:
    params = activation_params(-2.0, 6.35, "entropy")
    assert float(params.scale) == np.float32(0.05) and params.origin == "entropy"
    assert (params.low, params.high, params.zero_point, params.axis) == (-2.0, 6.35, 0, None)
    dead = activation_params(0.0, 0.0, "mse")
    assert float(dead.scale) == np.float32(1 / 127) and (dead.low, dead.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("dialect", "dtype", "signed", "positive"),
    [(S8, np.int8, 0, 0), (S8_BIAS, np.int8, 0, 0), (U8, np.uint8, 128, 0), (U8_7, np.uint8, 128, 0)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_zero_points_are_the_dialects_and_scales_are_everybodys(
    digits: Network, dialect: Dialect, dtype: type, signed: int, positive: int
) -> None:
    written = write_qdq(digits.model, digits.params, dialect)
    placed = place(digits.model)
    outputs = {value.name for value in digits.model.graph.output}
    for name in placed.activations:
        if name in outputs:
            continue
        zero = initializer(written, f"{name}_zero_point")
        assert zero.dtype == dtype and zero.shape == ()
        assert int(zero) == (positive if name in placed.never_negative else signed)
        assert initializer(written, f"{name}_scale") == digits.params[placed.source[name]].scale


def test_asymmetric_covers_exactly_what_was_seen(digits: Network) -> None:
    written = write_qdq(digits.model, digits.params, ASYMMETRIC)
    placed = place(digits.model)
    for name in set(placed.activations) - {"logits"}:
        scale = float(initializer(written, f"{name}_scale"))
        zero = int(initializer(written, f"{name}_zero_point"))
        found = digits.params[placed.source[name]]
        low, high = -zero * scale, (255 - zero) * scale
        assert abs(low - min(found.low, 0)) <= scale / 2 * 1.001 and abs(high - found.high) <= scale / 2 * 1.001
        assert zero == 0 or found.low < 0


@pytest.mark.parametrize("dialect", [U8, ASYMMETRIC], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("bound", [6.0, 1.0, 0.3, 20.7, 3.9843752])  # 255 * float32(3.9843752 / 255) is above it
def test_behind_a_clip_the_integers_end_at_its_bound(dialect: Dialect, bound: float) -> None:
    weights = {"w": random(4, 3), "zero": np.zeros((), np.float32), "top": np.full((), bound, np.float32)}
    nodes = [node("Gemm", "x w", "h", transB=1), node("Clip", "h zero top", "c"), node("Gemm", "c v", "y")]
    model = graph(nodes, {**weights, "v": random(4, 2)}, {"x": ["n", 3]}, {"y": None})
    written = quantized(model, {"x": random(64, 3) * 100}, dialect)
    scale = initializer(written, "c_scale")
    end = np.float32(255) * scale
    assert bound * (1 - 1e-6) <= end <= np.float32(bound)


@settings(max_examples=50, deadline=None)
@given(low=st.floats(-1e4, 0), high=st.floats(1e-3, 1e4))
def test_zero_is_exact_in_every_dialect(low: float, high: float) -> None:
    model = graph([node("MatMul", "x w", "y")], {"w": random(3, 2)}, {"x": ["n", 3]}, {"y": None})
    params = weight_params(model, place(model)) | {name: activation_params(low, high, "test") for name in ("x", "y")}
    for dialect in DIALECTS:
        written = write_qdq(model, params, dialect)
        assert not run(written, {"x": np.zeros((2, 3), np.float32)}, optimise=False)["y"].any()


# --- the whole network


@EVERY_DIALECT
def test_int8_is_close_to_float(network: Network, dialect: Dialect) -> None:
    written = write_qdq(network.model, network.params, dialect)
    onnx.checker.check_model(written, full_check=True)
    (expected,), (actual,) = run(network.model, network.feed).values(), run(written, network.feed).values()
    assert decibels(expected, actual) > (28 if dialect.weight_bits == 8 else 24)


@EVERY_DIALECT
def test_accuracy_stays_within_a_point(digits: Network, dialect: Dialect) -> None:
    assert digits.labels is not None
    correct = []
    for model in (digits.model, write_qdq(digits.model, digits.params, dialect)):
        correct.append((run(model, digits.feed)["logits"].argmax(1) == digits.labels).mean())
    assert correct[0] > 0.94
    assert abs(correct[0] - correct[1]) <= 0.01


def test_signed_and_unsigned_files_agree(digits: Network) -> None:
    signed, unsigned = (
        run(write_qdq(digits.model, digits.params, dialect), digits.feed)["logits"] for dialect in (S8, U8)
    )
    assert (signed.argmax(1) == unsigned.argmax(1)).mean() >= 0.99
    assert decibels(signed, unsigned) > 30


@EVERY_DIALECT
@pytest.mark.parametrize("batch", [1, 7])
def test_runtime_optimisation_changes_next_to_nothing(network: Network, dialect: Dialect, batch: int) -> None:
    written = write_qdq(network.model, network.params, dialect)
    feed = {name: array[:batch] for name, array in network.feed.items()}
    (plain,), (fast,) = run(written, feed, optimise=False).values(), run(written, feed).values()
    assert fast.shape == (batch, 10)
    assert decibels(plain, fast) > 25  # rounding that flips; FACTS of a wrong fusion are single digits


def test_input_model_is_not_changed(digits: Network) -> None:
    before = digits.model.SerializeToString(deterministic=True)
    first, second = (write_qdq(digits.model, digits.params, U8) for _ in range(2))
    assert digits.model.SerializeToString(deterministic=True) == before
    assert first == second


@EVERY_DIALECT
def test_inputs_and_outputs_keep_their_float_types(network: Network, dialect: Dialect) -> None:
    written = write_qdq(network.model, network.params, dialect)
    for side in ("input", "output"):
        assert list(getattr(written.graph, side)) == list(getattr(network.model.graph, side))


def test_only_the_dialect_of_the_runtime_ends_in_a_pair() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "y")]
    model = graph(nodes, {"w": random(4, 3, 3, 3)}, {"x": ["n", 3, 6, 6]}, {"y": None})
    feed = {"x": random(4, 3, 6, 6)}
    assert kinds(quantized(model, feed, U8)) == {"QuantizeLinear": 2, "DequantizeLinear": 3, "Conv": 1, "Relu": 1}
    assert kinds(quantized(model, feed, S8)) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "Conv": 1, "Relu": 1}
    last = graph([node("Gemm", "x w", "y")], {"w": random(3, 4)}, {"x": ["n", 3]}, {"y": None})
    assert kinds(quantized(last, {"x": random(4, 3)}, U8))["QuantizeLinear"] == 1


def test_a_layer_that_gives_floats_has_no_pair_before_a_float_node() -> None:
    """Nothing stands between the two that would keep a runtime from making one kernel of them."""
    nodes = [node("Conv", "x w", "c"), node("Softplus", "c", "s"), node("Conv", "s v", "d"), node("Conv", "d u", "y")]
    weights = {name: random(4, 4, 3, 3, seed=ord(name)) for name in "wvu"}
    model, feed = graph(nodes, weights, {"x": ["n", 4, 9, 9]}, {"y": None}), {"x": random(4, 4, 9, 9)}
    dialects = [dataclasses.replace(U8, pair_after_last=(), float_results=give) for give in (False, True)]
    paired, free = (quantized(model, feed, dialect) for dialect in dialects)
    assert kinds(paired) - kinds(free) == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert next(each for each in free.graph.node if each.op_type == "Softplus").input == ["c"]
    assert decibels(run(model, feed)["y"], run(free, feed)["y"]) > 30


# --- refusals


def refusal(network: Network, dialect: Dialect = U8, **changed: QuantParams | None) -> str:
    params = {**network.params, **changed}
    with pytest.raises(QuantizationError) as raised:
        write_qdq(network.model, {name: found for name, found in params.items() if found is not None}, dialect)
    return str(raised.value)


@EVERY_DIALECT
def test_missing_parameters_are_named(vgg: Network, dialect: Dialect) -> None:
    for name in vgg.params:
        if name == "y":  # an output in float needs none
            continue
        assert refusal(vgg, dialect, **{name: None}) == f"tensor '{name}': no quantization parameters; calibrate it"


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf])
def test_a_senseless_scale_is_refused(vgg: Network, scale: float) -> None:
    bad = dataclasses.replace(vgg.params["relu"], scale=np.float32(scale))
    assert refusal(vgg, relu=bad) == f"tensor 'relu': its scale must be positive and finite, got {scale}"
    name = "module.layers.0.weight"
    scales = vgg.params[name].scale.copy()
    scales[3] = scale
    text = refusal(vgg, **{name: dataclasses.replace(vgg.params[name], scale=scales)})
    assert text.startswith(f"tensor '{name}': its scale must be positive and finite, got [")


def test_a_senseless_range_is_refused(vgg: Network) -> None:
    bad = dataclasses.replace(vgg.params["relu"], low=0.0, high=np.nan)
    assert refusal(vgg, ASYMMETRIC, relu=bad) == "tensor 'relu': its range must be finite, got 0.0 to nan"
