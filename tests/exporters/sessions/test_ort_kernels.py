"""What ONNX Runtime's kernels are traced back to: every layer, in float and in INT8, and what only converts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgesmith.core.errors import ArtifactError
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.sessions.ort_kernels import Kernel, kernels, planned

from ..conftest import Network
from ..graphs import S8, U8, calibrate, graph, node, random


def found(network: Network, folder: Path, dialect: object = None, keep_float: tuple[str, ...] = ()) -> list[Kernel]:
    path = network.path
    if dialect is not None:
        path = folder / "int8.onnx"
        onnx_file.save(qdq.write_qdq(network.model, network.params, dialect, keep_float), path)  # type: ignore[arg-type]
    feeds = [{name: array[:2] for name, array in network.feed.items()}]
    return kernels(path, network.model, feeds, threads=1, seconds=0.0)


def test_every_layer_has_its_kernel(network: Network, tmp_path: Path) -> None:
    weighted = {
        node.name: node.op_type for node in network.model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")
    }
    for dialect in (None, U8):
        made = found(network, tmp_path, dialect)
        # A layer's kernel is named after it, or after the Relu that is fused to it.
        relus = {
            node.name: maker.name
            for node in network.model.graph.node
            for maker in network.model.graph.node
            if node.op_type in ("Relu", "Clip") and node.input[0] in maker.output
        }
        owners = [relus.get(kernel.node, kernel.node) for kernel in made]
        assert Counter(owner for owner in owners if owner in weighted) >= Counter(list(weighted))
        int8 = {owner for owner, kernel in zip(owners, made, strict=True) if kernel.int8}
        assert int8 & set(weighted) == (set() if dialect is None else set(weighted))


def test_a_kernel_takes_time_and_a_conversion_says_whose(digits: Network, tmp_path: Path) -> None:
    made = found(digits, tmp_path, U8)
    assert sum(kernel.milliseconds for kernel in made) > 0
    assert [kernel.tensor for kernel in made if kernel.operator == "QuantizeLinear"] == ["image"]
    assert all(kernel.node == "" for kernel in made if kernel.tensor)


def test_turning_a_weight_back_is_its_layers_own_time(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x a", "ta"), node("Relu", "ta", "ra"), node("Gemm", "ra b", "y")]
    model = graph(nodes, {"a": random(64, 64), "b": random(64, 64)}, {"x": ["n", 64]}, {"y": ["n", 64]})
    feed = {"x": random(4, 64)}
    written = qdq.write_qdq(model, calibrate(model, feed), U8, ("n_y",))
    onnx_file.save(written, tmp_path / "int8.onnx")
    made = kernels(tmp_path / "int8.onnx", model, [feed], threads=1, seconds=0.0)
    owner = {kernel.name: (kernel.operator, kernel.node, kernel.tensor) for kernel in made}
    assert owner["a_DQ"] == ("DequantizeLinear", "n_ta", "")
    assert owner["x_Q"] == ("QuantizeLinear", "", "x")


def test_a_layer_kept_in_float_is_one_there_too(digits: Network, tmp_path: Path) -> None:
    first = next(node.name for node in digits.model.graph.node if node.op_type == "Conv")
    made = found(digits, tmp_path, U8, (first,))
    activations = set(placement.place(digits.model, (first,)).activations)
    assert "image" not in activations
    (entry,) = [kernel.tensor for kernel in made if kernel.operator == "QuantizeLinear"]
    assert entry in activations


def test_a_layer_that_silently_stays_float_is_seen(digits: Network, tmp_path: Path) -> None:
    # Signed activations without INT32 bias: of a residual network on x86 only some convolutions are fused.
    planned = {node.name for node in digits.model.graph.node if node.op_type == "Conv"}
    made = found(digits, tmp_path, S8)
    assert 0 < len({kernel.node for kernel in made if kernel.int8} & planned) < len(planned)


def test_the_plan_alone_says_the_same_and_runs_nothing(digits: Network, tmp_path: Path) -> None:
    ran = found(digits, tmp_path, S8)
    plan = planned(tmp_path / "int8.onnx")
    assert [(kernel.operator, kernel.node) for kernel in plan if kernel.int8] == [
        (kernel.operator, kernel.node) for kernel in ran if kernel.int8
    ]
    assert {kernel.milliseconds for kernel in plan} == {0.0}


def test_a_file_that_does_not_load(tmp_path: Path, digits: Network) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"broken\.onnx: ONNX Runtime cannot load it: "):
        kernels(tmp_path / "broken.onnx", digits.model, [{"image": np.zeros((1, 1, 8, 8), np.float32)}], 1, 0.0)
