"""Products whose ranges are found at run time: what is written computes what it says, in one kernel each."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.core.errors import QuantizationError
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import dynamic
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import weight_params
from edgesmith.exporters.linting.lint import check
from edgesmith.exporters.linting.lint_onnxruntime import SATURATING_RULES
from edgesmith.exporters.sessions import ort_kernels
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

from ..conftest import Network
from ..graphs import U8, calibrate, decibels, graph, initializer, kinds, node, optimised, random, run
from ..transformer import FEED, block

DYNAMIC = Dialect(**{**U8.__dict__, "name": "dynamic", "dynamic": True})
SAFE = Dialect(**{**DYNAMIC.__dict__, "weight_bits": 7})


def written(model: onnx.ModelProto, dialect: Dialect = DYNAMIC, keep_float: tuple[str, ...] = ()) -> onnx.ModelProto:
    return dynamic.write_int8(model, weight_params(model, place(model)), dialect, keep_float)


def one(nodes: list[onnx.NodeProto], **weights: np.ndarray) -> onnx.ModelProto:
    return graph(nodes, weights, {"x": ["n", 16]}, {"y": None})


def emulated(x: np.ndarray, weight: np.ndarray, limit: int) -> np.ndarray:
    """As the ONNX standard defines DynamicQuantizeLinear, and integers multiplied in full."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    inputs = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    scale = np.abs(weight).max(0) / limit
    return (inputs @ np.rint(weight / scale)) * step * scale


@pytest.mark.parametrize(("dialect", "limit"), [(DYNAMIC, 127), (SAFE, 63)])
def test_a_product_is_that_of_the_standard(dialect: Dialect, limit: int) -> None:
    weight, x = random(16, 8, seed=1), random(40, 16, seed=2) + 0.5
    model = written(one([node("MatMul", "x w", "y")], w=weight), dialect)
    np.testing.assert_allclose(run(model, {"x": x})["y"], emulated(x, weight, limit), rtol=1e-4, atol=1e-4)
    assert np.abs(initializer(model, "w_quantized")).max() == limit


def test_a_gemm_keeps_its_bias_and_turns_its_weight() -> None:
    weight, bias, x = random(16, 8, seed=1), random(8, seed=3), random(40, 16, seed=2)
    model = written(one([node("Gemm", "x w b", "y", transB=1)], w=np.ascontiguousarray(weight.T), b=bias))
    np.testing.assert_allclose(run(model, {"x": x})["y"], emulated(x, weight, 127) + bias, rtol=1e-4, atol=1e-4)


def test_the_range_follows_every_run() -> None:
    """What a fixed range would clip, or hardly use, is as close as ever."""
    model = one([node("MatMul", "x w", "y")], w=random(16, 8))
    changed = written(model)
    for size in (1e-3, 1.0, 1e3):
        feed = {"x": random(40, 16, seed=2, scale=size)}
        assert decibels(run(model, feed)["y"], run(changed, feed)["y"]) > 35


def test_every_product_of_a_transformer_is_one_kernel_with_its_bias(tmp_path: Path) -> None:
    model = block()
    changed = written(model)
    assert kinds(changed)["DynamicQuantizeLinear"] == 4, "queries, keys and values read one"
    onnx_file.save(changed, tmp_path / "model.onnx")
    found = optimised(tmp_path / "model.onnx")
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 6
    assert not {"MatMulInteger", "Cast"} & set(found)
    assert found["Add"] == 2, "the residuals"
    assert found["Gelu"] == 1, "ONNX Runtime fuses it by itself"
    assert decibels(run(model, FEED)["y"], run(changed, FEED)["y"]) > 30


def test_kernels_are_found_by_the_product_they_are_for(tmp_path: Path) -> None:
    model = block()
    onnx_file.save(written(model, keep_float=("n_om",)), tmp_path / "model.onnx")
    made = ort_kernels.kernels(tmp_path / "model.onnx", model, [FEED], 1, 0.0)
    assert {kernel.node for kernel in made if kernel.int8 and not kernel.tensor} == {
        "n_qm",
        "n_km",
        "n_vm",
        "n_im",
        "n_fm",
    }
    assert {kernel.tensor for kernel in made if kernel.operator == "DynamicQuantizeLinear"} == {"x"}


def test_convolutions_stay_as_the_other_dialects_write_them(digits: Network) -> None:
    params = calibrate(digits.model, digits.feed)
    found = kinds(dynamic.write_int8(digits.model, params, DYNAMIC))
    assert found["DynamicQuantizeLinear"] == found["MatMulInteger"] == kinds(digits.model)["Gemm"] == 1
    assert found["QuantizeLinear"] > 5


def test_only_where_products_lead(digits: Network) -> None:
    assert dynamic.leads(block(), place(block()))
    assert not dynamic.leads(digits.model, place(digits.model))


def test_weights_need_parameters() -> None:
    with pytest.raises(QuantizationError) as raised:
        dynamic.write_int8(one([node("MatMul", "x w", "y")], w=random(16, 8)), {}, DYNAMIC)
    assert str(raised.value) == "tensor 'w': no quantization parameters; calibrate it"


@pytest.mark.parametrize(("dialect", "found"), [(DYNAMIC, ["saturating-weights"] * 6), (SAFE, [])])
def test_weights_that_saturate_are_found(dialect: Dialect, found: list[str]) -> None:
    assert [finding.rule for finding in check(written(block(), dialect), SATURATING_RULES)] == found


def test_the_target_writes_it_as_one_of_its_dialects(tmp_path: Path) -> None:
    model, target = block(), OnnxRuntimeCpu()
    (dialect,) = [dialect for dialect in target.dialects() if dialect.dynamic]
    artifact = target.write(model, weight_params(model, place(model)), dialect, tmp_path / "model.onnx")
    assert (artifact.dialect, artifact.precision) == ("dynamic", "int8")
    found = optimised(tmp_path / "model.onnx")
    assert (found["Sum"], found["LayerNormalization"], found["SkipLayerNormalization"]) == (2, 2, 0)
