"""Small ONNX graphs made by hand, small torch networks, and what the tests of this folder ask of both."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import nn

from edgesmith.core.values import QuantParams, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu
from edgesmith.exporters.targets.tensorrt import TensorRT

FLOAT = onnx.TensorProto.FLOAT
S8 = TensorRT().dialects()[0]
# Written out where the CPU at hand would choose 7-bit weights: the tests hold on every machine.
U8 = Dialect(
    name="u8",
    activations="u8",
    int32_bias=True,
    pair_after_last=("Conv", "MatMul", "Add", "Concat", "GlobalAveragePool", "AveragePool", "Relu", "Clip"),
)
U8_7 = Dialect(**{**U8.__dict__, "name": "u8-7bit", "weight_bits": 7})
ASYMMETRIC = Dialect(**{**U8.__dict__, "name": "u8-asymmetric", "activations": "u8-asymmetric"})
S8_BIAS = Dialect(**{**U8.__dict__, "name": "s8", "activations": "s8"})
SHIFTED = Dialect(**{**U8.__dict__, "name": "s8-shifted", "activations": "s8-shifted"})
S8_ASYMMETRIC = Dialect(**{**U8.__dict__, "name": "s8-asymmetric", "activations": "s8-asymmetric"})
DIALECTS = (U8, U8_7, ASYMMETRIC, S8_BIAS, S8, SHIFTED, S8_ASYMMETRIC)
assert U8.pair_after_last == OnnxRuntimeCpu().dialects()[0].pair_after_last


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str] | None],
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model with float inputs and outputs; nodes without a name get their output's, outputs without a shape their own."""
    for node in nodes:
        node.name = node.name or f"n_{node.output[0]}"
    made = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(made, opset_imports=imports, ir_version=8)
    return onnx.shape_inference.infer_shapes(model) if None in outputs.values() else model


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """`node("Conv", "x w b", "y")`."""
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], optimise: bool = True) -> dict[str, np.ndarray]:
    """Outputs by name, in ONNX Runtime; without VNNI too, where 8-bit weights would saturate, as the file says."""
    options = _options(optimise)
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def optimised(path: Path) -> Counter[str]:
    """Operators that are left when ONNX Runtime has fused what it can."""
    options = _options(True)
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return kinds(onnx.load(path.with_suffix(".optimised")))


def _options(optimise: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def calibrate(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, QuantParams]:
    """Parameters of weights and activations, from the smallest and largest values seen."""
    placed = placement.place(model)
    seen = taps.observe(model, [feed], placement.tensors_to_observe(placed))
    activations = {name: qdq.activation_params(found.low, found.high, "min-max") for name, found in seen.items()}
    return qdq.weight_params(model, placed) | activations


def quantized(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], dialect: Dialect) -> onnx.ModelProto:
    """The graph in a dialect, calibrated on this feed."""
    return qdq.write_qdq(model, calibrate(model, feed), dialect)


def decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    """Signal to noise ratio."""
    noise = float(((expected - actual) ** 2).sum())
    return float(10 * np.log10((expected**2).sum() / noise)) if noise else float("inf")


def rewritten(model: onnx.ModelProto, rewrite: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    """A copy that was rewritten in place, and is a valid model."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    rewrite(changed)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def initializer(model: onnx.ModelProto, name: str) -> np.ndarray:
    (found,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    return numpy_helper.to_array(found)


class Vgg(nn.Module):
    """Convolutions with biases, max-pooling, two linear layers; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Separable(nn.Module):
    """Depthwise-separable blocks with batch norm and ReLU6, as in MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(3, 16, 3, 1, 1), *_block(16, 16, 3, 1, 16), *_block(16, 32, 1, 1, 1),
            *_block(32, 32, 3, 2, 32), *_block(32, 32, 1, 1, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _block(inputs: int, outputs: int, size: int, stride: int, groups: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs)
    nn.init.constant_(norm.weight, 3.0)  # so that ReLU6 has something to cut off
    return conv, norm, nn.ReLU6()


def exported(module: nn.Module, images: np.ndarray, path: Path) -> onnx.ModelProto:
    """The canonical graph of a network for `x` `(batch, 3, 8, 8)`, its batch norms having seen the images."""
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(torch.tensor(images))
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *images.shape[1:]))
    from_torch.export(module, {"x": images}, (spec,), ("y",), path)
    return canonicalise(onnx_file.load(path))
