"""`edgesmith inspect`: the same numbers that pruning and the report use, and what a target would say."""

import dataclasses
import json
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.benches.report.inspection import dialect_of, inspect_onnx, quantized_ops, unknown_operators
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.int8 import qdq
from tests.exporters.graphs import U8, calibrate, graph, node, random

RUN = Path("runs/small")


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments]) == ExitCode.PASS
    return capsys.readouterr().out


def test_a_recipe(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = inspected(capsys, "recipe.toml")
    assert out.startswith(
        "recipe.toml (torch)\ninputs: image float32 (batch, 1, 8, 8)\noutputs: logits float32 (batch, 10)\n"
        "231 k multiply-adds of one sample, 14.5 k parameters\nLayers"
    )
    assert out.endswith(
        "Coupled channels: 3 groups\n"
        "  conv1: 16 channels: can be pruned\n"
        "  conv2: 32 channels, together with conv3: can be pruned\n"
        "  head: 10 channels: not pruned: its channels are the model's output\n"
    )


def test_json_holds_the_layers(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(inspected(capsys, "task.py", "--json"))
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["conv2"] == {
        "name": "conv2", "kind": "Conv2d", "shape": [1, 32, 4, 4], "macs": 16 * 32 * 9 * 16, "params": 16 * 32 * 9 + 32,
    }  # fmt: skip
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert sum(layer["params"] for layer in found["layers"]) == found["params"]


def test_a_pruned_stage_is_smaller(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for stage in ("00-original", "01-prune", "02-distill"):
        found = json.loads(inspected(capsys, str(RUN / "stages" / stage / "model.safetensors"), "--json"))
        sizes[stage] = found["macs"]
    report = json.loads((RUN / "report.json").read_text())
    assert sizes["01-prune"] == sizes["02-distill"] == report["final"]["macs"]
    assert sizes["00-original"] == report["original"]["macs"]


def test_what_is_int8_and_who_refuses_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensorrt = inspected(capsys, str(RUN / "artifacts/tensorrt/model.onnx"))
    assert "written as s8-symmetric\n" in tensorrt and "\nonnxruntime-cpu: takes it" in tensorrt
    assert "\ntensorrt: takes it\n" in tensorrt
    assert "INT8: Add 1 of 1, Conv 3 of 3, " in tensorrt
    # Its signed form is one that ONNX Runtime has few kernels for on x86; there the file is not meant to run.
    signed = "planned in INT8, and run in float by ONNX Runtime on this machine:\n" in tensorrt
    assert signed == (platform.machine() in ("x86_64", "AMD64"))
    assert "Relu 3 of 3; written as" in tensorrt
    float_file = inspected(capsys, str(RUN / "measurements/00-original/model.onnx"))
    assert "INT8: nothing; written as float\n" in float_file


def test_a_list_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"relu{i}") for i in range(30)]
    path = tmp_path / "long.onnx"
    onnx.save(model_of(nodes, "t0", "t30"), path)
    out = inspected(capsys, str(path))
    assert "... 10 more (--all)\n" in out
    assert "relu19" in out
    assert "relu20" not in out
    assert "relu29" in inspected(capsys, str(path), "--all")


def test_a_class_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("inspected_nets.py").write_text(
        "from torch import nn\n\n\ndef tiny():\n    return nn.Sequential(nn.Linear(4, 3))\n"
    )
    np.savez("data.npz", input=np.ones((20, 4)))
    out = inspected(capsys, "inspected_nets:tiny", "--data", "data.npz")
    assert "inputs: input float32 (batch, 4)\noutputs: output float32 (batch, 3)\n12 multiply-adds" in out


def test_what_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.onnx").write_bytes(b"\x08\x07\x12")
    Path("model.safetensors").write_bytes(b"x")
    known = (
        "give an ONNX file, a task.py, a recipe.toml, a stage's model.safetensors in a run directory, "
        "or MODULE:CLASS with --data\n"
    )
    for arguments, message in {
        ("none.onnx",): "ArtifactError: none.onnx: cannot read the ONNX file: No such file or directory\n",
        ("cut.onnx",): "ArtifactError: cut.onnx: not an ONNX file, or truncated; export it again\n",
        ("nothing",): f"TaskError: nothing: no such file; {known}",
        (
            "cut.onnx",
            "--data",
            "a.npz",
        ): "TaskError: --data a.npz: only MODULE:CLASS needs it; cut.onnx brings its own\n",
    }.items():
        assert main(["inspect", *arguments]) == ExitCode.USAGE
        assert capsys.readouterr().err == message
    assert main(["inspect", "model.safetensors"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("TaskError: model.safetensors: weights alone hold no architecture, and ")


def model_of(nodes: list[onnx.NodeProto], first: str, last: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph of one input and one output `(batch, 4)`."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in (first, last)]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized(*zeros: np.ndarray, bias: bool = False) -> onnx.ModelProto:
    """A chain of Q/DQ pairs with these zero points, and a Relu between."""
    nodes, constants, name = [], {"scale": np.array(0.1, np.float32)}, "x"
    for index, zero in enumerate(zeros):
        constants[f"zero{index}"] = zero
        pair = ["scale", f"zero{index}"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *pair], [f"q{index}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{index}", *pair], [f"d{index}"]))
        nodes.append(helper.make_node("Abs", [f"d{index}"], [f"r{index}"]))
        name = f"r{index}"
    if bias:
        constants |= {"b": np.ones(4, np.int32), "bias_zero": np.array(0, np.int32)}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "scale", "bias_zero"], ["b_float"]))
        nodes.append(helper.make_node("Add", [name, "b_float"], ["sum"]))
        name = "sum"
    return model_of(nodes, "x", name, **constants)


@pytest.mark.parametrize(
    ("zeros", "bias", "expected"),
    [
        ([np.int8(0), np.int8(0)], False, "s8-symmetric"),
        ([np.int8(0), np.int8(0)], True, "s8-symmetric, INT32 bias"),
        ([np.int8(0), np.int8(3)], False, "s8-asymmetric"),
        ([np.uint8(0), np.uint8(128)], True, "u8, INT32 bias"),
        ([np.uint8(0), np.uint8(17)], False, "u8-asymmetric"),
        ([np.uint8(0), np.int8(0)], False, "mixed"),
        ([np.uint16(0)], False, "unknown"),
        ([], False, "float"),
    ],
)
def test_dialects_are_told_apart(zeros: list[np.generic], bias: bool, expected: str) -> None:
    model = quantized(*(np.array(zero) for zero in zeros), bias=bias) if zeros else model_of(
        [helper.make_node("Relu", ["x"], ["y"])], "x", "y"
    )  # fmt: skip
    assert dialect_of(model) == expected


def test_ranges_found_at_run_time_are_a_dialect() -> None:
    model = model_of([helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])], "x", "s")
    assert dialect_of(model) == "dynamic"
    pair = quantized(np.array(0, np.uint8), bias=True)
    pair.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["r0"], ["q", "s", "z"]))
    assert dialect_of(pair) == "u8, INT32 bias, dynamic"


def test_integers_anywhere_in_a_file_are_no_float() -> None:
    """In a branch, in a local function, and as weights of 4 bits, which one operator unpacks."""
    nodes = list(quantized(np.array(0, np.int8)).graph.node)
    reads = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    branch = helper.make_graph(nodes, "branch", [], reads, quantized(np.array(0, np.int8)).graph.initializer)
    either = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    assert dialect_of(model_of([either], "x", "y", c=np.array(True))) != "float"
    function = helper.make_function("own", "Pair", ["x", "scale", "z"], ["r"], nodes, [helper.make_opsetid("", 17)])
    caller = model_of([helper.make_node("Pair", ["x", "x", "x"], ["y"], domain="own")], "x", "y")
    caller.functions.append(function)
    assert dialect_of(caller) == "unknown"
    packed = helper.make_node("MatMulNBits", ["x", "w", "scale"], ["y"], domain="com.microsoft", K=32, N=1, bits=4)
    assert dialect_of(model_of([packed], "x", "y", w=np.zeros((1, 1, 16), np.uint8))) == "unknown"


def test_constants_are_those_that_a_node_sees() -> None:
    """A zero point 3 and an INT32 tensor of the main graph share names with what a function and a branch read."""
    body = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"]),
    ]
    function = helper.make_function("own", "Pair", ["x", "s", "z"], ["r"], body, [helper.make_opsetid("", 17)])
    main = {"scale": np.array(1, np.float32), "zero": np.array(0, np.int8), "z": np.array(3, np.int8)}
    call = helper.make_node("Pair", ["x", "scale", "zero"], ["y"], domain="own")
    caller = model_of([call], "x", "y", **main, q=np.array(0, np.int32))
    caller.functions.append(function)
    assert dialect_of(caller) == "unknown"
    tensors = [
        numpy_helper.from_array(np.array(1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    ]
    out = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    branch = helper.make_graph(body, "branch", [], out, tensors)
    either = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    shadowing = model_of([either], "x", "y", c=np.array(True), z=np.array(3, np.int8), q=np.array(0, np.int32))
    assert dialect_of(shadowing) == "s8-symmetric"


def test_a_node_is_int8_if_all_it_reads_is() -> None:
    model = quantized(np.array(0, np.int8))
    model.graph.node.append(helper.make_node("Abs", ["r0"], ["float_abs"]))
    found = quantized_ops(model)
    assert [(ops.op, ops.int8, ops.total) for ops in found] == [("Abs", 1, 2)]


def test_what_tensorrt_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "u8.onnx"
    onnx.save(quantized(np.array(3, np.uint8)), path)
    found = {target.target: [finding.text for finding in target.findings] for target in inspect_onnx(path).targets}
    assert found["onnxruntime-cpu"] == []
    text = "works on UINT8 with zero point 3; calibrate it symmetrically, as INT8 [unsigned]"
    assert found["tensorrt"] == [f"QuantizeLinear '': {text}", f"DequantizeLinear '': {text}"]
    assert f"tensorrt: would refuse it:\n  refused: QuantizeLinear '': {text}\n" in inspected(capsys, str(path))


def test_operators_outside_the_standard_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("FusedThing", ["a"], ["b"], domain="com.acme"),
        helper.make_node("Rela", ["b"], ["y"]),
    ]
    assert unknown_operators(model_of(nodes, "x", "y")) == ("Rela", "com.acme::FusedThing")


def test_dynamic_axes_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], "x", "y"), path)
    found = inspect_onnx(path)
    assert found.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
    assert (found.opset, found.macs, found.params) == (20, 0, 0)


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`a.onnx`, its INT8 form `b.onnx` whose third product is rounded to next to nothing, and `data.npz`."""
    monkeypatch.chdir(tmp_path)
    nodes = [node("Gemm", "x w0", "h0"), node("Gemm", "h0 w1", "h1"), node("Gemm", "h1 w2", "h2")]
    weights = {f"w{index}": random(16, 16, seed=index) for index in range(3)}
    model = graph(nodes, weights, {"x": ["n", 16]}, {"h2": ["n", 16]})
    x = random(64, 16, seed=9)
    params = calibrate(model, {"x": x})
    coarse = dataclasses.replace(params["w2"], scale=np.asarray(params["w2"].scale) * 60)
    onnx.save(model, "a.onnx")
    onnx.save(qdq.write_qdq(model, {**params, "w2": coarse}, U8), "b.onnx")
    np.savez("data.npz", x=x)
    return tmp_path


def test_layers_against_the_original_the_worst_first(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(inspected(capsys, "b.onnx", "--against", "a.onnx", "--data", "data.npz", "--json"))
    assert {key: found["closeness"][0][key] for key in ("layer", "operator", "tensor")} == {
        "layer": "n_h2",
        "operator": "Gemm",
        "tensor": "h2",
    }
    worst, *others = [each["snr_db"] for each in found["closeness"]]
    assert worst < 15 and len(others) == 2 and min(others) > 30 and others == sorted(others)
    out = inspected(capsys, "b.onnx", "--against", "a.onnx", "--data", "data.npz")
    assert f"errors of the layers before included\n  n_h2 (Gemm): {worst:.1f} dB\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b.onnx", "--against", "a.onnx"], "UsageError: --against a.onnx: both files run on real inputs; give them with --data"),
        (["m.py", "--against", "a.onnx"], "UsageError: --against a.onnx: compares two ONNX files, not m.py"),
        (["b.onnx", "--against", "c.onnx", "--data", "data.npz"], "ArtifactError: b.onnx: no layer's result has a name that c.onnx has too; was it made from it?"),
        (["b.onnx", "--against", "z.onnx", "--data", "data.npz"], "DataError: z.onnx: input 'z' is missing; given: x"),
        (["b.onnx", "--against", "narrow.onnx", "--data", "data.npz"], "DataError: narrow.onnx: input 'x' must be float32 (n, 8), got float32 (1, 16)"),
        (["foreign.onnx", "--against", "a.onnx", "--data", "data.npz"], "ArtifactError: foreign.onnx: ONNX Runtime cannot load it: [ONNXRuntimeError] : 1 : FAIL : Load model from foreign.onnx failed:Fatal error: com.acme:Strange(-1) is not a registered function/op"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    arguments: list[str], message: str, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(
        graph([node("Gemm", "x w", "other")], {"w": random(16, 16)}, {"x": ["n", 16]}, {"other": ["n", 16]}), "c.onnx"
    )
    for name, given, width in (("z", "z", 16), ("narrow", "x", 8)):
        nodes = [node("Gemm", f"{given} w", "h0")]
        onnx.save(graph(nodes, {"w": random(width, 16)}, {given: ["n", width]}, {"h0": ["n", 16]}), f"{name}.onnx")
    foreign = helper.make_node("Strange", ["x"], ["odd"], domain="com.acme")
    nodes = [node("Gemm", "x w", "h0"), foreign]
    onnx.save(
        graph(nodes, {"w": random(16, 16)}, {"x": ["n", 16]}, {"h0": ["n", 16]}, 17, ["com.acme"]), "foreign.onnx"
    )
    assert main(["inspect", *arguments]) != ExitCode.PASS
    assert capsys.readouterr().err.strip() == message
