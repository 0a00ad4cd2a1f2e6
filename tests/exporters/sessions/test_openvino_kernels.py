"""What OpenVINO's counters say, by the layers of the float graph: each is found, whatever it was fused to."""

from pathlib import Path

import onnx
import pytest

from edgesmith.core.errors import ArtifactError, MeasurementError
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions import openvino_kernels
from edgesmith.exporters.sessions.openvino_session import OpenVinoSession
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
