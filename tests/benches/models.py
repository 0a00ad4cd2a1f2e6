"""Small ONNX models for timing: a chain of matrix products, so that twice the layers are twice the work."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH = 128


def chain(path: Path, layers: int, batch: int | str = "batch", width: int = WIDTH, name: str = "x") -> Path:
    """Write `layers` times MatMul and Relu: input `(batch, width)`, output `y` of the same shape."""
    rng = np.random.default_rng(layers)
    nodes, weights, last = [], [], name
    for index in range(layers):
        weight = rng.standard_normal((width, width)).astype(np.float32) * np.sqrt(2 / width).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        last = "y" if index == layers - 1 else f"r{index}"
        nodes.append(helper.make_node("Relu", [f"m{index}"], [last]))
    return write(path, nodes, weights, {name: (onnx.TensorProto.FLOAT, [batch, width])}, {"y": [batch, width]})


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
) -> Path:
    """Write a graph as a file of opset 17."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in outputs.items()],
        list(weights),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
