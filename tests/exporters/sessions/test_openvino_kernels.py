"""What OpenVINO's counters say, by the layers of the float graph: each is found, whatever it was fused to."""

from pathlib import Path

import onnx
import pytest

from edgesmith.core.errors import ArtifactError, MeasurementError
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions import openvino_kernels
from edgesmith.exporters.sessions.layer_kernel import LayerKernel
from edgesmith.exporters.sessions.openvino_session import Kernel, OpenVinoSession
from edgesmith.exporters.targets.openvino import OpenVino

from ..conftest import Network
from ..graphs import graph, node, quantized, random


def weighted(model: onnx.ModelProto) -> set[str]:
    return {each.name for each in model.graph.node if each.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")}


@pytest.mark.parametrize("int8", [False, True])
def test_every_layer_has_a_time(int8: bool, network: Network, tmp_path: Path) -> None:
    model = network.model
    if int8:
        model = quantized(network.model, network.feed, OpenVino().dialects()[0])
    onnx_file.save(model, tmp_path / "model.onnx")
    found = OpenVino().kernels(tmp_path / "model.onnx", network.model, [network.feed], 1, 0.1)
    assert weighted(network.model) <= {kernel.node for kernel in found if kernel.milliseconds > 0}
    assert not [kernel for kernel in found if kernel.node and kernel.tensor]
    tensors = {name for each in network.model.graph.node for name in [*each.input, *each.output]}
    converted = {kernel.tensor for kernel in found} - {""}
    assert converted <= tensors and bool(converted) == int8
    named = sum(bool(kernel.node or kernel.tensor) for kernel in found)
    assert named >= len(found) - 1  # what only brings the result into the caller's layout works for no layer


def test_a_transposed_convolution_that_lost_its_name_to_its_bias_is_found(tmp_path: Path) -> None:
    model = graph(
        [
            node("ConvTranspose", "x t e", "u", strides=[2, 2]), node("Relu", "u", "r"),
            node("Conv", "r w", "y", pads=[1] * 4),
        ],
        {"t": random(4, 4, 2, 2), "e": random(4), "w": random(4, 4, 3, 3)}, {"x": ["n", 4, 6, 6]}, {"y": None},
    )  # fmt: skip
    feed = {"x": random(2, 4, 6, 6, seed=1)}
    onnx_file.save(quantized(model, feed, OpenVino().dialects()[0]), tmp_path / "int8.onnx")
    found = openvino_kernels.kernels(tmp_path / "int8.onnx", model, [feed], 1, 0.1)
    assert {kernel.node for kernel in found} >= {"n_u", "n_y"}
    assert "r" in {kernel.tensor for kernel in found}


def test_a_file_that_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="OpenVINO cannot load it"):
        openvino_kernels.kernels(tmp_path / "none.onnx", onnx.ModelProto(), [], 1, 0.1)


def test_a_session_that_does_not_count_says_so(network: Network) -> None:
    session = OpenVinoSession(network.path)
    session.run(network.feed)
    with pytest.raises(MeasurementError, match="the session was not opened to count times"):
        session.profile()


def residual(blocks: int, named: bool) -> onnx.ModelProto:
    """Sums of two paths, one behind another, under names as torch.onnx.export writes them, or without any."""
    nodes, weights, last = [], {}, "x"
    for index in range(blocks):
        weights[f"w{index}"] = random(4, 4, 3, 3, seed=index) / 10
        end = "y" if index == blocks - 1 else f"s{index}"
        nodes += [
            node("Conv", f"{last} w{index}", f"c{index}", pads=[1] * 4), node("Relu", f"c{index}", f"r{index}"),
            node("Add", f"{last} r{index}", end),
        ]  # fmt: skip
        last = end
    for each in nodes:
        each.name = f"/layer/{each.output[0]}/{each.op_type}" if named else ""
    return graph(nodes, weights, {"x": ["n", 4, 6, 6]}, {"y": None})


@pytest.mark.parametrize("int8", [False, True])
def test_names_with_slashes(int8: bool, tmp_path: Path) -> None:
    model = residual(40, named=True)  # of paths from the first to the last there are 2^40
    feed = {"x": random(1, 4, 6, 6, seed=1)}
    changed = quantized(model, feed, OpenVino().dialects()[0]) if int8 else model
    onnx_file.save(changed, tmp_path / "model.onnx")
    found = openvino_kernels.kernels(tmp_path / "model.onnx", model, [feed], 1, 0.1)
    assert weighted(model) <= {kernel.node for kernel in found}


@pytest.mark.parametrize("named", [False, True])
def test_every_kernel_that_multiplies_is_that_of_its_node(named: bool, tmp_path: Path) -> None:
    model = quantized(residual(3, named=True), {"x": random(1, 4, 6, 6, seed=1)}, OpenVino().dialects()[0])
    for each in model.graph.node:
        each.name = each.name if named else ""
    onnx_file.save(model, tmp_path / "model.onnx")
    session = OpenVinoSession(tmp_path / "model.onnx")
    run = openvino_kernels.multiplying(session, model)
    outputs = {each.output[0] for each in model.graph.node if each.op_type == "Conv"}
    assert outputs <= set(run) and {run[name].operator for name in outputs} == {"Convolution"}
    assert {run[name].precision for name in outputs} <= {"u8", "i8"}
    assert len({run[name].name for name in outputs}) == 3


def test_a_kernel_that_nothing_of_the_file_reads_works_for_no_layer() -> None:
    loop = {name: Kernel(name=name, operator="Eltwise", precision="f32", nodes=(), readers=("a", "b")) for name in "ab"}
    explained = openvino_kernels._Explained(residual(1, True), residual(1, True), loop)
    assert explained.kernel("a", 1.0) == LayerKernel(node="", tensor="", milliseconds=1.0)
    assert explained.kernel("none", 1.0).node == ""
