"""The engine that a device builds from a bundle, without onnx: the same as this machine builds. No GPU is needed."""

import dataclasses
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgesmith.benches.device import device_engine, on_device
from edgesmith.compressor.device.bundle import engine_how
from edgesmith.core import digest
from edgesmith.core.errors import BuildError, MeasurementError
from edgesmith.exporters.engines import engine_build, engine_file
from edgesmith.exporters.engines.engine_options import Build

OPTIONS = Build(batch=(1, 2, 4), workspace_mb=64, precision="float16")


def saved(folder: Path, operator: str = "Relu", shape: tuple[str | int, ...] = ("batch", 8)) -> Path:
    """One node over `x`; an operator that is none needs a domain of its own to be a valid file."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    domain = "" if operator == "Relu" else "custom"
    node = helper.make_node(operator, ["x"], ["y"], name="only", domain=domain)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets, ir_version=8)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_it_is_what_this_machine_builds_with_the_same_options(tmp_path: Path) -> None:
    here, there = saved(tmp_path / "here"), saved(tmp_path / "there")
    wanted = engine_build.build(here, here.with_suffix(".engine"), OPTIONS)
    how = engine_how(there, OPTIONS)
    assert how["parsed"] == "model.float16.onnx"
    found = device_engine.build_beside(there, how)
    same = ("tool", "version", "source_digest", "onnx", "onnx_digest", "inputs", "outputs", "profiles", "precision")
    same += ("quantized", "workspace_mb", "built_on", "platform", "device_command", "device_note")
    assert {name: getattr(found, name) for name in same} == {name: getattr(wanted, name) for name in same}
    engine = there.with_suffix(".engine")
    assert engine_file.read(engine) == found
    assert found.engine_bytes == engine.stat().st_size
    # A second time it is taken as it is; of another file it is built again.
    assert device_engine.build_beside(there, how) == found
    saved(tmp_path / "there", shape=("batch", 16))
    other = device_engine.build_beside(there, engine_how(there, OPTIONS))
    assert other.source_digest == digest.of_file(there) != found.source_digest
    assert other.profiles["x"]["max"] == (4, 16)


def test_what_the_builder_refuses_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path, operator="Frobnicate")
    how = dataclasses.asdict(OPTIONS) | {"parsed": path.name, "profiles": {"x": [[1, 8], [2, 8], [4, 8]]}}
    how |= {"quantized": False, "precision": "as-is", "inputs": [], "outputs": []}
    with pytest.raises(BuildError) as refused:
        device_engine.build_beside(path, how)
    assert str(refused.value).startswith(f"{path}: tensorrt_rtx refuses it: node 'only' (Frobnicate): ")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_sizes_that_are_missing_are_said_in_the_bundle(tmp_path: Path) -> None:
    path = saved(tmp_path, shape=("batch", "tokens"))
    assert engine_how(path, Build())["problem"].startswith(
        "input 'x' (batch, tokens): axis 1 'tokens' is dynamic and has no sizes; "
    )


def test_what_a_device_has_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert on_device.unmeasurable("onnxruntime-cpu") == ""
    assert on_device.unmeasurable("tensorrt") == "no CUDA device"
    assert on_device.unmeasurable("onnxruntime-cuda") == "no CUDA device"
    assert on_device.unmeasurable("abacus") == "target 'abacus' is not known to this bundle"
    monkeypatch.setattr(on_device, "this_cpu", lambda: "x86-vnni")
    assert on_device.unmeasurable("onnxruntime-arm") == "it is written for a CPU of kind 'arm', this is 'x86-vnni'"
    monkeypatch.setattr(on_device.importlib.util, "find_spec", lambda name: None)
    assert on_device.unmeasurable("openvino") == "openvino is not installed: pip install openvino"
    assert on_device.unmeasurable("onnxruntime-cpu") == "onnxruntime is not installed: pip install onnxruntime"
    with pytest.raises(MeasurementError, match=r"^tensorrt is not installed: it comes with JetPack, elsewhere: pip "):
        device_engine.build_beside(tmp_path / "model.onnx", {})
