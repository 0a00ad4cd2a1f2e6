"""HALP's table: milliseconds of single layers at any width, as they will be deployed: INT8 kernels of ONNX Runtime."""

import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgesmith.compressor.candidate import Candidate
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

_SECONDS = 0.03  # a layer at one width is timed for so long
_MICROSOFT = "com.microsoft"
Shape = tuple[int, ...]


class Table:
    """The convolutions and linear layers of a network; a layer of the same shapes is timed once."""

    def __init__(self, module: nn.Module, candidate: Candidate, batch: int, threads: int) -> None:
        self._threads = threads
        self._inputs: dict[str, Shape] = {}
        hooks = [
            layer.register_forward_hook(functools.partial(self._seen, name))
            for name, layer in module.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear))
        ]
        with torch.no_grad():
            module.eval()(*(tensor[:1].expand(batch, *tensor.shape[1:]) for tensor in candidate.example.values()))
        for hook in hooks:
            hook.remove()
        self._layers: dict[str, Any] = {name: module.get_submodule(name) for name in self._inputs}

    def _seen(self, name: str, layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._inputs[name] = tuple(inputs[0].shape)

    def whole(self) -> float:
        """All layers as they are."""
        return sum(self.time(name, self.width(name)) for name in self._layers)

    def width(self, name: str) -> int:
        return int(self._layers[name].weight.shape[0])

    def names(self) -> list[str]:
        return list(self._layers)

    def time(self, name: str, width: int) -> float:
        """Of one layer with `width` outputs, its input as wide as it is now."""
        layer, shape = self._layers[name], self._inputs[name]
        if isinstance(layer, nn.Linear):
            return _timed(("linear", width), shape, self._threads)
        groups = 1
        if layer.groups > 1:
            groups, shape = width, (shape[0], width, *shape[2:])
        return _timed(("conv", width, layer.kernel_size, layer.stride, layer.padding, groups), shape, self._threads)


@functools.cache
def _timed(how: tuple[Any, ...], shape: Shape, threads: int) -> float:
    made = _linear(shape, how[1]) if how[0] == "linear" else _convolution(shape, *how[1:])
    with tempfile.TemporaryDirectory(prefix="halp-") as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(made, path)
        session = OnnxRuntimeSession(path, threads)
        (spec,) = session.inputs
        run = session.bind({spec.name: np.zeros([int(size) for size in spec.shape], np.uint8)})
        times: list[float] = []
        until = time.perf_counter() + _SECONDS
        while len(times) < 5 or time.perf_counter() < until:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        session.close()
    return 1e3 * statistics.median(times)


def _convolution(
    shape: Shape, width: int, kernel: Shape, stride: Shape, padding: Shape, groups: int
) -> onnx.ModelProto:
    """Channels last, as ONNX Runtime lays out what lies between two INT8 convolutions."""
    batch, channels, height, across = shape
    node = helper.make_node(
        "QLinearConv",
        ["x", "scale", "zero", "w", "scales", "zeros", "scale", "zero", "b"],
        ["y"],
        domain=_MICROSOFT,
        kernel_shape=kernel,
        strides=stride,
        pads=(*padding, *padding),
        group=groups,
        channels_last=1,
    )
    size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((height, across), padding, kernel, stride, strict=True)]
    weight = np.ones((width, channels // groups, *kernel), np.int8)
    return _graph(node, weight, (batch, height, across, channels), (batch, *size, width))


def _linear(shape: Shape, width: int) -> onnx.ModelProto:
    node = helper.make_node(
        "QLinearMatMul", ["x", "scale", "zero", "w", "scales", "zeros", "scale", "zero"], ["y"]
    )  # fmt: skip
    return _graph(node, np.ones((shape[-1], width), np.int8), shape, (*shape[:-1], width))


def _graph(node: onnx.NodeProto, weight: np.ndarray, shape: Shape, result: Shape) -> onnx.ModelProto:
    """The one node, activations uint8 and weights int8 with a scale for each of the outputs."""
    width = result[-1]
    constants = {
        "scale": np.float32(0.1),
        "zero": np.uint8(0),
        "w": weight,
        "scales": np.full(width, 0.1, np.float32),
        "zeros": np.zeros(width, np.int8),
        "b": np.zeros(width, np.int32),
    }
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, result)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in node.input],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
