"""The TensorRT target: its dialect keeps its rules, other dialects are refused, nothing is measured without a GPU."""

import sys
from pathlib import Path

import onnx
import pytest

from edgesmith.core.errors import BuildError, MeasurementError, QuantizationError
from edgesmith.exporters.engines import cuda_driver
from edgesmith.exporters.engines.engine_options import Build
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.targets.tensorrt import TensorRT

from ..conftest import Network
from ..graphs import ASYMMETRIC, S8, S8_BIAS, U8
from ..linting.lint_graphs import one


def lint(model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    onnx_file.save(model, folder / "model.onnx")
    return tuple(finding.text for finding in TensorRT().lint(folder / "model.onnx"))


def test_the_dialects_own_file_is_clean(network: Network, tmp_path: Path) -> None:
    (dialect,) = TensorRT().dialects()
    assert lint(qdq.write_qdq(network.model, network.params, dialect), tmp_path) == ()
    assert lint(network.model, tmp_path) == ()


def test_int32_biases_are_each_found(vgg: Network, tmp_path: Path) -> None:
    found = lint(qdq.write_qdq(vgg.model, vgg.params, S8_BIAS), tmp_path)
    assert sorted(found) == sorted(
        f"DequantizeLinear 'module.layers.{layer}.bias_DQ': works on an INT32 bias; "
        "keep the bias in float, as --fix does [int32-bias]"
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
    (finding,) = TensorRT().lint(path)
    assert finding.problem == f"{path}: not an ONNX file, or truncated; export it again"


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
        TensorRT().open(artifact.path, 1)
    assert str(raised.value) == f"{tmp_path / 'model.onnx'}: not measured: {reason}"


def test_a_driver_and_a_tool_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "load", object)
    assert TensorRT().unmeasurable() is None


def test_build_lints_first(vgg: Network, tmp_path: Path) -> None:
    onnx_file.save(qdq.write_qdq(vgg.model, vgg.params, U8), tmp_path / "model.onnx")
    with pytest.raises(
        BuildError,
        match=r"^\S+/model.onnx: TensorRT refuses it: .* \[int32-bias\].*; and \d+ more; write it with target",
    ):
        TensorRT().build(tmp_path / "model.onnx", tmp_path / "model.engine", Build())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_which_operators_there_are_the_tool_says(tmp_path: Path) -> None:
    """A newer one may have more of them than the linter knows."""
    onnx.save(one("Det", (2, 4, 4), (2,)), tmp_path / "model.onnx")
    assert [finding.rule for finding in TensorRT().lint(tmp_path / "model.onnx")] == ["unsupported-operator"]
    with pytest.raises(BuildError, match=r"TensorRT for RTX \S+ refuses node 'n_y' \(Det\), UNSUPPORTED_NODE"):
        TensorRT().build(tmp_path / "model.onnx", tmp_path / "model.engine", Build())


def test_devices_are_counted_as_torch_counts_them() -> None:
    import torch

    assert (cuda_driver.load() is not None) == torch.cuda.is_available()
