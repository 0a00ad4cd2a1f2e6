"""What ONNX Runtime makes of the `u8` file: everything fused into INT8 kernels, one step in and one step out."""

import dataclasses
import os
from collections import Counter
from pathlib import Path

import onnx
import pytest

from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import ort_glue, qdq
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.placement import place

from ..conftest import Network
from ..graphs import ASYMMETRIC, S8, U8, U8_7, calibrate, graph, kinds, node, optimised, random

# What may be left beside INT8 kernels: moving data, and the step between float and integers at either end.
MOVING = {"Transpose", "Reshape", "Flatten"}
UNSIGNED = pytest.mark.parametrize("dialect", [U8, U8_7, ASYMMETRIC], ids=lambda dialect: dialect.name)


def fused(network: Network, dialect: Dialect, folder: Path) -> Counter[str]:
    path = folder / "model.onnx"
    onnx_file.save(qdq.write_qdq(network.model, network.params, dialect), path)
    return optimised(path)


@UNSIGNED
def test_residual_network(digits: Network, dialect: Dialect, tmp_path: Path) -> None:
    found, before = fused(digits, dialect, tmp_path), kinds(digits.model)
    assert found["QLinearConv"] == before["Conv"] == 10
    assert found["QLinearAdd"] == before["Add"] == 4
    assert found["QLinearGlobalAveragePool"] == before["GlobalAveragePool"] == 1
    assert found["QGemm"] == before["Gemm"] == 1
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] <= 1
    assert set(found) <= MOVING | {
        "QLinearConv",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "QGemm",
        "QuantizeLinear",
        "DequantizeLinear",
    }


@UNSIGNED
def test_vgg_style_network(vgg: Network, dialect: Dialect, tmp_path: Path) -> None:
    found = fused(vgg, dialect, tmp_path)
    assert found["QLinearConv"] == 2 and found["QGemm"] == 2
    assert found["MaxPool"] + found["NhwcMaxPool"] == 1
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] <= 1
    assert set(found) <= MOVING | {
        "QLinearConv",
        "QGemm",
        "MaxPool",
        "NhwcMaxPool",
        "QuantizeLinear",
        "DequantizeLinear",
    }


@UNSIGNED
def test_separable_network(separable: Network, dialect: Dialect, tmp_path: Path) -> None:
    assert all(separable.params[name].high == 6.0 for name in ("hardtanh_1", "hardtanh_2")), "ReLU6 cuts something off"
    found = fused(separable, dialect, tmp_path)
    assert found["QLinearConv"] == 5 and found["QGemm"] == 1 and found["QLinearGlobalAveragePool"] == 1
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] <= 1
    assert set(found) <= MOVING | {
        "QLinearConv",
        "QGemm",
        "QLinearGlobalAveragePool",
        "QuantizeLinear",
        "DequantizeLinear",
    }


@UNSIGNED
def test_concatenated_branches(dialect: Dialect, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4), node("Relu", "a", "b"), node("Conv", "x v", "c", pads=[1] * 4),
        node("Relu", "c", "d"), node("Concat", "b d", "e", axis=1), node("Conv", "e u", "f"), node("Relu", "f", "y"),
    ]  # fmt: skip
    weights = {"w": random(8, 3, 3, 3), "v": random(8, 3, 3, 3, seed=1), "u": random(8, 16, 1, 1, seed=2)}
    model = graph(nodes, weights, {"x": ["n", 3, 8, 8]}, {"y": None})
    onnx_file.save(qdq.write_qdq(model, calibrate(model, {"x": random(8, 3, 8, 8)}), dialect), tmp_path / "model.onnx")
    found = optimised(tmp_path / "model.onnx")
    assert found["QLinearConv"] == 3 and found["QLinearConcat"] == 1
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] == 1


@UNSIGNED
def test_tied_weights_and_a_shared_bias_are_fused(dialect: Dialect, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w b", "a", pads=[1] * 4), node("Relu", "a", "r"), node("Conv", "r w b", "c", pads=[1] * 4),
        node("Relu", "c", "y"),
    ]  # fmt: skip
    weights = {"w": random(8, 8, 3, 3), "b": random(8)}
    model = graph(nodes, weights, {"x": ["n", 8, 8, 8]}, {"y": None})
    onnx_file.save(qdq.write_qdq(model, calibrate(model, {"x": random(8, 8, 8, 8)}), dialect), tmp_path / "model.onnx")
    found = optimised(tmp_path / "model.onnx")
    assert found["QLinearConv"] == 2 and found["QuantizeLinear"] == 1 and found["DequantizeLinear"] == 1


def test_the_form_tensorrt_wants_is_not_fused_on_x86(digits: Network, tmp_path: Path) -> None:
    """Why there are dialects at all: behind a Relu, signed integers leave the convolutions in float."""
    found = fused(digits, S8, tmp_path)
    assert found["QLinearConv"] < 10
    assert found["FusedConv"] + found["Conv"] + found["QLinearConv"] == 10


@UNSIGNED
def test_the_file_is_less_than_half_as_large(digits: Network, dialect: Dialect, tmp_path: Path) -> None:
    """Weights are a quarter; scales, zero points and the Q/DQ nodes of a network this small take the rest."""
    onnx_file.save(digits.model, tmp_path / "float.onnx")
    onnx_file.save(qdq.write_qdq(digits.model, digits.params, dialect), tmp_path / "int8.onnx")
    sizes = [os.path.getsize(tmp_path / name) for name in ("float.onnx", "int8.onnx")]
    assert sizes[1] < sizes[0] / 2
    floats = [tensor for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer if tensor.data_type == 1]
    assert all(len(tensor.dims) <= 1 for tensor in floats), "no weight is left in float"


@UNSIGNED
def test_weights_with_one_scale_are_fused_alike(network: Network, dialect: Dialect, tmp_path: Path) -> None:
    coarse = qdq.weight_params(network.model, place(network.model), per_tensor=True)
    found = fused(dataclasses.replace(network, params=network.params | coarse), dialect, tmp_path)
    assert found == fused(network, dialect, tmp_path)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_product_that_a_rectifier_hands_to_a_float_layer(kind: str, tmp_path: Path) -> None:
    # With a Relu the runtime fuses the float product to it, and turns the weight back into floats in every run.
    nodes = [node(kind, "x a", "ta"), node("Relu", "ta", "ra"), node("Gemm", "ra b", "y")]
    model = graph(nodes, {"a": random(64, 64), "b": random(64, 64)}, {"x": ["n", 64]}, {"y": ["n", 64]})
    written = qdq.write_qdq(model, calibrate(model, {"x": random(4, 64)}), U8, ("n_y",))
    ort_glue.rewrite(written)
    onnx_file.save(written, tmp_path / "model.onnx")
    product = {"Gemm": "QGemm", "MatMul": "MatMulIntegerToFloat"}[kind]
    assert optimised(tmp_path / "model.onnx") == {"QuantizeLinear": 1, product: 1, "Max": 1, "Gemm": 1}
