"""TensorRT's rules, each broken on purpose; its own dialect keeps them all."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgesmith.core.errors import BuildError, MeasurementError, QuantizationError
from edgesmith.exporters import cuda_driver, onnx_file, qdq
from edgesmith.exporters.engine_options import Build
from edgesmith.exporters.tensorrt import TensorRT

from .conftest import Network
from .graphs import ASYMMETRIC, S8, S8_BIAS, U8, graph, node, random


def lint(model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    onnx_file.save(model, folder / "model.onnx")
    return TensorRT().lint(folder / "model.onnx")


def pairs(zero: np.ndarray | None, weight_zero: np.ndarray | None = None, in_nodes: bool = False) -> onnx.ModelProto:
    """A quantized MatMul with these zero points of the activation and of the weight."""
    kind = np.int8 if weight_zero is None else weight_zero.dtype
    weights = {
        "s": np.float32(0.1).reshape(()),
        "ws": np.full(3, 0.1, np.float32),
        "w": random(4, 3, scale=9).astype(kind),
    }
    weights |= {name: value for name, value in (("z", zero), ("wz", weight_zero)) if value is not None}
    nodes = [
        node("QuantizeLinear", "x s z" if zero is not None else "x s", "q"),
        node("DequantizeLinear", "q s z" if zero is not None else "q s", "d"),
        node("DequantizeLinear", "w ws wz" if weight_zero is not None else "w ws", "k", axis=1),
        node("MatMul", "d k", "y"),
    ]
    if in_nodes:
        nodes.insert(0, node("Constant", "", "z", value=numpy_helper.from_array(weights.pop("z"))))
    return graph(nodes, weights, {"x": ["n", 4]}, {"y": ["n", 3]})


WEIGHT_ZERO = np.zeros(3, np.int8)


def test_the_dialects_own_file_is_clean(network: Network, tmp_path: Path) -> None:
    (dialect,) = TensorRT().dialects()
    assert lint(qdq.write_qdq(network.model, network.params, dialect), tmp_path) == ()
    assert lint(network.model, tmp_path) == ()
    assert lint(pairs(np.int8(0).reshape(()), WEIGHT_ZERO), tmp_path) == ()
    assert lint(pairs(np.int8(0).reshape(()), WEIGHT_ZERO, in_nodes=True), tmp_path) == ()


@pytest.mark.parametrize("in_nodes", [False, True])
@pytest.mark.parametrize(
    ("zero", "text"),
    [
        (np.int8(3), "zero point 3; it must be 0"),
        (np.int8(-128), "zero point -128; it must be 0"),
        (np.uint8(0), "works on UINT8; only symmetric INT8 is accepted"),
        (np.uint8(128), "works on UINT8; only symmetric INT8 is accepted"),
    ],
)
def test_zero_points_of_activations(zero: np.generic, text: str, in_nodes: bool, tmp_path: Path) -> None:
    found = lint(pairs(np.asarray(zero), WEIGHT_ZERO, in_nodes), tmp_path)
    assert found == (f"QuantizeLinear 'n_q': {text}", f"DequantizeLinear 'n_d': {text}")


def test_zero_points_of_weights(tmp_path: Path) -> None:
    zero = np.int8(0).reshape(())
    found = lint(pairs(zero, np.array([0, -7, 2], np.int8)), tmp_path)
    assert found == ("DequantizeLinear 'n_k': zero point -7; it must be 0",)
    found = lint(pairs(zero, np.zeros(3, np.uint8)), tmp_path)
    assert found == ("DequantizeLinear 'n_k': works on UINT8; only symmetric INT8 is accepted",)


def test_missing_zero_point(tmp_path: Path) -> None:
    text = "no zero point, which means UINT8; write an INT8 zero point of 0"
    found = lint(pairs(None, WEIGHT_ZERO), tmp_path)
    assert found == (f"QuantizeLinear 'n_q': {text}", f"DequantizeLinear 'n_d': {text}")


def test_zero_point_that_is_computed(tmp_path: Path) -> None:
    model = pairs(np.int8(0).reshape(()), WEIGHT_ZERO)
    model.graph.node.insert(0, node("Identity", "z", "computed"))
    for made in model.graph.node[1:3]:
        made.input[2] = "computed"
    text = "its zero point is not a constant"
    assert lint(model, tmp_path) == (f"QuantizeLinear 'n_q': {text}", f"DequantizeLinear 'n_d': {text}")


def test_int32_biases_are_each_found(vgg: Network, tmp_path: Path) -> None:
    found = lint(qdq.write_qdq(vgg.model, vgg.params, S8_BIAS), tmp_path)
    assert sorted(found) == sorted(
        f"DequantizeLinear 'module.layers.{layer}.bias_DQ': works on an INT32 bias; only symmetric INT8 is accepted"
        for layer in (0, 2, 6, 8)
    )


@pytest.mark.parametrize("dialect", [U8, ASYMMETRIC, S8_BIAS], ids=lambda dialect: dialect.name)
def test_another_targets_dialect_is_refused_and_leaves_no_file(vgg: Network, dialect: object, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"^target 'tensorrt' would refuse the file: (De)?[qQ]uantizeLinear '"):
        TensorRT().write(vgg.model, vgg.params, dialect, tmp_path / "model.onnx")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_int8_without_a_dialect_is_refused(vgg: Network, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError) as raised:
        TensorRT().write(vgg.model, vgg.params, None, tmp_path / "model.onnx")
    assert str(raised.value) == "target 'tensorrt': INT8 needs a dialect"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    assert TensorRT().lint(path) == (f"{path}: not an ONNX file, or truncated; export it again",)


@pytest.mark.parametrize(
    ("driver", "installed", "reason"),
    [
        (None, True, "no CUDA device"),
        (object(), False, 'neither tensorrt nor tensorrt_rtx is installed: pip install "edgesmith[tensorrt-rtx]"'),
    ],
)
def test_says_why_nothing_can_be_measured(
    vgg: Network, driver: object, installed: bool, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "load", lambda: driver)
    if not installed:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    artifact = TensorRT().write(vgg.model, vgg.params, S8, tmp_path / "model.onnx")
    assert TensorRT().unmeasurable() == reason
    with pytest.raises(MeasurementError) as raised:
        TensorRT().open(artifact, 1)
    assert str(raised.value) == f"{tmp_path / 'model.onnx'}: not measured: {reason}"


def test_a_driver_and_a_tool_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "load", object)
    assert TensorRT().unmeasurable() is None


def test_build_lints_first(vgg: Network, tmp_path: Path) -> None:
    onnx_file.save(qdq.write_qdq(vgg.model, vgg.params, U8), tmp_path / "model.onnx")
    with pytest.raises(BuildError, match=r"^\S+/model.onnx: TensorRT refuses it: .*: works on UINT8; only symmetric"):
        TensorRT().build(tmp_path / "model.onnx", tmp_path / "model.engine", Build())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_devices_are_counted_as_torch_counts_them() -> None:
    import torch

    assert (cuda_driver.load() is not None) == torch.cuda.is_available()
