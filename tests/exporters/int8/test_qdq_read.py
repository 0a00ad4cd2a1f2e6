"""The reader of quantized files: what the writer wrote comes back, and what others wrote becomes the same few nouns."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgesmith.core.errors import QuantizationError
from edgesmith.core.values import QuantParams
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.placement import place, tensors_to_observe
from edgesmith.exporters.int8.qdq import activation_params, write_qdq
from edgesmith.exporters.int8.qdq_read import Read, read_qdq

from ..conftest import Network
from ..graphs import (
    ASYMMETRIC,
    DIALECTS,
    S8,
    U8,
    calibrate,
    decibels,
    graph,
    initializer,
    kinds,
    node,
    random,
    run,
)

EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


# --- what the writer wrote


@EVERY_DIALECT
def test_parameters_come_back(network: Network, dialect: Dialect) -> None:
    read = read_qdq(write_qdq(network.model, network.params, dialect))
    placed = place(network.model)
    assert kinds(read.model) == kinds(network.model)
    assert read.guessed == read.unused == ()
    outputs = {value.name for value in network.model.graph.output}
    assert set(read.unseen) <= outputs, "an output in float has no pair to read"
    assert set(read.params) | set(read.unseen) == set(network.params)
    for name, found in read.params.items():
        expected = network.params[name]
        assert found.axis == expected.axis
        if name in placed.weights:
            assert found.bits == dialect.weight_bits
            steps = 2 ** (found.bits - 1) - 1
            np.testing.assert_allclose(found.scale * steps, expected.scale * 127, rtol=1e-6)
        elif not dialect.name.endswith("asymmetric") and name not in placed.upper:
            assert found.scale == expected.scale
        else:  # a zero point is rounded; behind a Clip the file says at least what the values need
            step = (max(expected.high, 0) - min(expected.low, 0)) / 255
            assert abs(found.high - expected.high) <= step or found.high == pytest.approx(placed.upper.get(name, 0))
            assert abs(min(found.low, 0) - min(expected.low, 0)) <= step or not dialect.name.endswith("asymmetric")


@EVERY_DIALECT
def test_weights_come_back_as_the_numbers_in_the_file(network: Network, dialect: Dialect) -> None:
    read = read_qdq(write_qdq(network.model, network.params, dialect))
    for name, axis in place(read.model).weights.items():
        shape = [-1 if index == axis else 1 for index in range(initializer(read.model, name).ndim)]
        scale = read.params[name].scale.astype(np.float64).reshape(shape)
        weight = initializer(read.model, name)
        assert (np.abs(weight - initializer(network.model, name)) <= scale / 2 * (1 + 1e-5)).all()
        steps = weight / scale
        assert (np.abs(steps - np.rint(steps)) < 1e-3).all()


def test_an_asymmetric_range_whose_zero_lies_in_the_middle_by_chance() -> None:
    model = graph([node("MatMul", "x w", "y")], {"w": random(8, 8)}, {"x": ["n", 8]}, {"y": ["n", 8]})
    params = calibrate(model, {"x": random(16, 8)}) | {"x": activation_params(-128 / 100, 127 / 100, "made up")}
    read = read_qdq(write_qdq(model, params, ASYMMETRIC))
    assert (read.params["x"].low, read.params["x"].high) == pytest.approx((-1.28, 1.27))


@EVERY_DIALECT
def test_written_again_it_is_the_same_file(network: Network, dialect: Dialect) -> None:
    first = write_qdq(network.model, network.params, dialect)
    read = read_qdq(first)
    last = {name: network.params[name] for name in read.unseen}  # an output that this dialect leaves in float
    second = write_qdq(read.model, {**read.params, **last}, dialect)
    assert kinds(first) == kinds(second)
    for tensor in first.graph.initializer:
        before, after = initializer(first, tensor.name), initializer(second, tensor.name)
        if before.dtype.kind == "i" and before.dtype.itemsize == 4:  # a bias is rounded to a product of two scales
            np.testing.assert_allclose(after, before, atol=1)
        elif before.dtype.kind in "iu":
            np.testing.assert_array_equal(after, before, err_msg=tensor.name)
        else:
            np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7, err_msg=tensor.name)


def test_a_file_of_one_dialect_becomes_one_of_another(digits: Network) -> None:
    assert digits.labels is not None
    read = read_qdq(write_qdq(digits.model, digits.params, ASYMMETRIC))
    signed = write_qdq(read.model, read.params, S8)
    expected, actual = run(digits.model, digits.feed)["logits"], run(signed, digits.feed)["logits"]
    assert decibels(expected, actual) > 25
    assert (expected.argmax(1) == actual.argmax(1)).mean() >= 0.99


def test_input_model_is_not_changed(digits: Network) -> None:
    written = write_qdq(digits.model, digits.params, U8)
    before = written.SerializeToString(deterministic=True)
    read_qdq(written)
    assert written.SerializeToString(deterministic=True) == before


# --- single pairs, by hand


def pair(
    name: str, scale: float, zero: int, kind: type = np.uint8
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """`name` -> Q -> DQ -> `name_d`."""
    weights = {f"{name}_s": np.float32(scale), f"{name}_z": np.array(zero, kind)}
    values = {key: np.asarray(value) for key, value in weights.items()}
    nodes = [
        node("QuantizeLinear", f"{name} {name}_s {name}_z", f"{name}_q"),
        node("DequantizeLinear", f"{name}_q {name}_s {name}_z", f"{name}_d"),
    ]
    return nodes, values


def dense(scale: float, zero: int, kind: type = np.uint8) -> onnx.ModelProto:
    """A pair on the input of a Gemm whose weight is INT8."""
    nodes, weights = pair("x", scale, zero, kind)
    weights |= {
        "w": np.array([[100, 2], [-127, 4]], np.int8),
        "ws": np.array([0.5, 0.25], np.float32),
        "wz": np.zeros(2, np.int8),
    }
    nodes += [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        node("MatMul", "x_d wd", "y"),
    ]
    return graph(nodes, weights, {"x": ["n", 2]}, {"y": ["n", 2]})


@pytest.mark.parametrize(
    ("zero", "kind", "low", "high", "scale"),
    [
        (0, np.int8, -1.27, 1.27, 0.01),
        (128, np.uint8, -1.27, 1.27, 0.01),
        (0, np.uint8, 0.0, 2.55, 2.55 / 127),
        (28, np.uint8, -0.28, 2.27, 2.27 / 127),
        (-128, np.int8, 0.0, 2.55, 2.55 / 127),
        (10, np.int8, -1.38, 1.17, 1.38 / 127),
    ],
)
def test_what_a_scale_and_a_zero_point_mean(zero: int, kind: type, low: float, high: float, scale: float) -> None:
    """Symmetric types keep their scale; of all others the range counts, and the scale covers it."""
    read = read_qdq(dense(0.01, zero, kind))
    found = read.params["x"]
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-6), pytest.approx(high, rel=1e-6))
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    assert found.origin == f"Q/DQ in the file: {np.dtype(kind).name}, scale 0.01, zero point {zero}"


def test_a_weight_is_what_its_integers_stand_for() -> None:
    read = read_qdq(dense(0.01, 0, np.int8))
    np.testing.assert_array_equal(initializer(read.model, "w"), [[50, 0.5], [-63.5, 1.0]])
    assert (read.params["w"].axis, read.params["w"].bits, read.params["w"].origin) == (1, 8, "Q/DQ in the file")
    np.testing.assert_array_equal(read.params["w"].scale, np.array([0.5, 0.25], np.float32))
    assert read.unseen == () and kinds(read.model) == {"MatMul": 1}


def test_a_batch_norm_multiplies_weight_and_scale() -> None:
    """Q/DQ on the weight of a convolution that a batch norm follows, as training leaves it."""
    weight = random(3, 2, 1, 1)
    nodes, weights = pair("x", 0.01, 0, np.int8)
    weights |= {
        "w": weight, "ws": np.array([0.02, 0.03, 0.04], np.float32), "wz": np.zeros(3, np.int8),
        "gamma": np.array([2.0, -3.0, 0.0], np.float32), "beta": random(3), "mean": random(3, seed=1),
        "var": np.array([4.0, 1.0, 1.0], np.float32),
    }  # fmt: skip
    nodes += [
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        node("Conv", "x_d wd", "c"),
        node("BatchNormalization", "c gamma beta mean var", "y", epsilon=1e-12),
    ]
    read = read_qdq(graph(nodes, weights, {"x": ["n", 2, 4, 4]}, {"y": ["n", 3, 4, 4]}))
    (name,) = place(read.model).weights
    np.testing.assert_allclose(read.params[name].scale, [0.02, 0.09, 0.04], rtol=1e-5)
    np.testing.assert_allclose(
        initializer(read.model, name)[:2], weight[:2] * np.array([1, -3]).reshape(2, 1, 1, 1), rtol=1e-5
    )
    assert read.guessed == ()


def test_where_the_integers_did_the_work_of_a_relu() -> None:
    """A quantizer that drops a Relu leaves it to the zero point: without the pair it would be gone."""
    first, weights = pair("x", 0.05, 0, np.int8)
    second, more = pair("h", 0.02, 0)
    nodes = [*first, node("MatMul", "x_d w", "h"), *second, node("MatMul", "h_d v", "y")]
    weights |= more | {"w": random(3, 4), "v": random(4, 2)}
    quantized = graph(nodes, weights, {"x": ["n", 3]}, {"y": ["n", 2]})
    read = read_qdq(quantized)
    assert kinds(read.model) == {"MatMul": 2, "Clip": 1}
    feed = {"x": random(64, 3, seed=3)}
    expected = np.clip(feed["x"] @ initializer(read.model, "w"), 0, 5.1) @ initializer(read.model, "v")
    np.testing.assert_allclose(run(read.model, feed)["y"], expected, atol=1e-5)
    assert decibels(run(quantized, feed)["y"], expected) > 25
    assert (read.params["h"].low, read.params["h"].high) == (0.0, pytest.approx(5.1))


def test_of_two_pairs_on_one_tensor_the_wider_counts() -> None:
    """As torch leaves them: one for the output of what makes a tensor, one for the input of what reads it."""
    first, weights = pair("x", 0.01, 0, np.int8)
    second, more = pair("x_d", 0.03, 0, np.int8)
    nodes = [*first, *second, node("MatMul", "x_d_d w", "y")]
    read = read_qdq(graph(nodes, weights | more | {"w": random(3, 4)}, {"x": ["n", 3]}, {"y": ["n", 4]}))
    assert float(read.params["x"].scale) == np.float32(0.03) and kinds(read.model) == {"MatMul": 1}


def test_two_outputs_of_one_pair() -> None:
    nodes, weights = pair("h", 0.02, 0, np.int8)
    nodes = [node("MatMul", "x w", "h"), *nodes, node("DequantizeLinear", "h_q h_s h_z", "again")]
    read = read_qdq(graph(nodes, weights | {"w": random(3, 4)}, {"x": ["n", 3]}, {"h_d": ["n", 4], "again": ["n", 4]}))
    outputs = run(read.model, {"x": random(5, 3)})
    np.testing.assert_allclose(outputs["h_d"], random(5, 3) @ random(3, 4), rtol=1e-5)
    np.testing.assert_array_equal(outputs["h_d"], outputs["again"])


def test_what_placement_does_not_want_is_said() -> None:
    first, weights = pair("x", 0.05, 0, np.int8)
    second, more = pair("s", 0.01, 0, np.int8)
    nodes = [*first, node("MatMul", "x_d w", "h"), node("Sigmoid", "h", "s"), *second, node("Erf", "s_d", "y")]
    read = read_qdq(graph(nodes, weights | more | {"w": random(3, 4)}, {"x": ["n", 3]}, {"y": ["n", 4]}))
    assert (read.unused, read.unseen, read.guessed) == (("s",), (), ("w",))


# --- what others wrote


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    def __init__(self, feed: Mapping[str, np.ndarray]) -> None:
        self._rows = iter([{name: array[:96] for name, array in feed.items()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


ONNX_RUNTIME = {
    "default": {},
    "unsigned": {"activation_type": QuantType.QUInt8, "per_channel": True},
    "symmetric": {
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    },
}


@pytest.fixture(params=sorted(ONNX_RUNTIME))
def by_onnx_runtime(request: pytest.FixtureRequest, network: Network, tmp_path: Path) -> onnx.ModelProto:
    path = tmp_path / "quantized.onnx"
    source = tmp_path / "float.onnx"
    onnx_file.save(network.model, source)
    quantize_static(source, path, _Reader(network.feed), quant_format=QuantFormat.QDQ, **ONNX_RUNTIME[request.param])
    return onnx_file.load(path)


def test_a_file_of_onnx_runtimes_quantizer(network: Network, by_onnx_runtime: onnx.ModelProto) -> None:
    read = read_qdq(by_onnx_runtime)
    feed = {name: array[96:] if len(array) > 192 else array for name, array in network.feed.items()}
    (expected,), (actual,) = run(network.model, feed).values(), run(read.model, feed).values()
    assert decibels(expected, actual) > 28, "the float graph, with weights rounded to the file's integers"
    assert read.guessed == ()
    for dialect in (S8, U8, ASYMMETRIC):
        assert decibels(*_written(read, by_onnx_runtime, feed, dialect)) > 20


@pytest.mark.parametrize("name", ["digits", "separable"])
def test_a_file_of_torchaos_quantizer(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The one for x86: asymmetric unsigned activations, some residual sums in float."""
    network: Network = request.getfixturevalue(name)
    images = next(iter(network.feed.values()))
    theirs = by_torchao(network.module.eval(), images[:32], tmp_path / "quantized.onnx")
    read = read_qdq(theirs)
    feed = {"x": images[32:]}
    with torch.no_grad():
        expected = network.module(torch.tensor(feed["x"])).numpy()
    assert decibels(expected, run(read.model, feed)["y"]) > 28, "the float graph, with weights on the file's grid"
    assert read.guessed == ()
    inner = {name for name in read.unseen if name != "y"}
    assert len(inner) <= 8 and all(name in tensors_to_observe(place(read.model)) for name in inner)
    assert decibels(*_written(read, theirs, feed, S8)) > 20


def by_torchao(module: torch.nn.Module, images: np.ndarray, path: Path) -> onnx.ModelProto:
    with warnings.catch_warnings():  # what the packages say of each other
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        batch = {0: torch.export.Dim("batch")}
        example = (torch.tensor(images),)
        traced = torch.export.export(module, example, dynamic_shapes=(batch,)).module(check_guards=False)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(traced, quantizer)
        prepared(*example)
        converted = convert_pt2e(prepared)
        torch.onnx.export(
            converted, example, str(path), input_names=["x"], output_names=["y"], dynamo=True, verbose=False,
            dynamic_shapes=(batch,), external_data=False,
        )  # fmt: skip
    return onnx_file.load(path)


def _written(
    read: Read, theirs: onnx.ModelProto, feed: Mapping[str, np.ndarray], dialect: Dialect
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the file they wrote and of the one that is made of what was read in it."""
    params: dict[str, QuantParams] = {name: activation_params(-1, 1, "test") for name in read.unseen}
    if read.unseen:
        params |= {name: found for name, found in calibrate(read.model, feed).items() if name in read.unseen}
    written = write_qdq(read.model, {**read.params, **params}, dialect)
    (expected,), (actual,) = run(theirs, feed, optimise=False).values(), run(written, feed, optimise=False).values()
    return expected, actual


# --- refusals


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(QuantizationError) as caught:
        read_qdq(model)
    return str(caught.value)


def test_a_float_graph_is_refused(vgg: Network) -> None:
    assert refusal(vgg.model) == "the graph has no QuantizeLinear or DequantizeLinear: there is nothing to read"


def test_integer_operators_are_refused() -> None:
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")]
    assert refusal(graph(nodes, {}, {"x": ["n", 3]}, {"y": ["n", 3]})) == (
        "the graph computes with integers (DynamicQuantizeLinear); only Q/DQ pairs around float operators can be read: "
        "write it with pairs (ONNX Runtime: QuantFormat.QDQ), or start from the float model"
    )


def test_integers_that_are_computed_with_are_refused() -> None:
    nodes, weights = pair("x", 0.1, 0)
    nodes.insert(1, node("MaxPool", "x_q", "p", kernel_shape=[2, 2]))
    nodes[2].input[0] = "p"
    assert refusal(graph(nodes, weights, {"x": ["n", 1, 4, 4]}, {"x_d": ["n", 1, 3, 3]})) == (
        "DequantizeLinear 'n_x_d': reads integers from MaxPool 'n_p'; only Q/DQ pairs around float operators can be "
        "read: start from the float model"
    )


def test_two_scales_are_no_pair() -> None:
    nodes, weights = pair("x", 0.1, 0)
    nodes[1].input[1] = "other"
    weights["other"] = np.array(0.2, np.float32)
    assert refusal(graph(nodes, weights, {"x": ["n", 3]}, {"x_d": ["n", 3]})) == (
        "DequantizeLinear 'n_x_d': its scale or zero point is not that of QuantizeLinear 'n_x_q': the two change the "
        "numbers and are no pair; start from the float model"
    )


def test_a_scale_computed_at_run_time_is_refused() -> None:
    nodes, weights = pair("x", 0.1, 0)
    del weights["x_s"]
    nodes.insert(0, node("ReduceMax", "x", "x_s", keepdims=0))
    assert refusal(graph(nodes, weights, {"x": ["n", 3]}, {"x_d": ["n", 3]})) == (
        "QuantizeLinear 'n_x_q': its scale or zero point 'x_s' is computed at run time (dynamic quantization); only "
        "constants can be read: start from the float model"
    )


def test_sixteen_bits_are_refused() -> None:
    nodes, weights = pair("x", 0.1, 0, np.uint16)
    assert refusal(graph(nodes, weights, {"x": ["n", 3]}, {"x_d": ["n", 3]}, opset=21)) == (
        "QuantizeLinear 'n_x_q': uint16 cannot be read, only int8 and uint8; start from the float model"
    )
