"""Float graph + QuantParams -> explicit Q/DQ, in any dialect. The only writer there is."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..core.errors import QuantizationError
from ..core.values import QuantParams
from .dialect import Dialect
from .placement import Placement, place

_INT32 = 2**31 - 1


def weight_params(model: onnx.ModelProto, placement: Placement) -> dict[str, QuantParams]:
    """Symmetric per-channel parameters from the largest absolute weight of each output channel, 8 bits."""
    found = {}
    for tensor in model.graph.initializer:
        axis = placement.weights.get(tensor.name)
        if axis is None:
            continue
        weight = numpy_helper.to_array(tensor)
        largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
        scale = np.where(largest > 0, largest, 127.0) / 127  # a channel of zeros: any scale will do
        bound = float(largest.max(initial=0.0))
        found[tensor.name] = QuantParams(
            low=-bound, high=bound, scale=scale.astype(np.float32), axis=axis, origin="largest absolute weight"
        )
    return found


def activation_params(low: float, high: float, origin: str) -> QuantParams:
    """Symmetric per-tensor parameters for values in `[low, high]`, 8 bits."""
    bound = max(abs(low), abs(high))
    return QuantParams(low=low, high=high, scale=np.float32(bound / 127), origin=origin)  # type: ignore[arg-type]  # 0-d


def write_qdq(model: onnx.ModelProto, params: Mapping[str, QuantParams], dialect: Dialect) -> onnx.ModelProto:
    """Write Q/DQ pairs where `placement.place` puts them.

    Args:
        model: a canonical float graph; not changed.
        params: of every weight, and of every tensor in `placement.tensors_to_observe`.
        dialect: how a pair is written.

    Raises:
        QuantizationError: parameters are missing, a scale is not positive, a bias does not fit; names the tensor.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    _Writer(written, place(model), params, dialect).write()
    onnx.checker.check_model(written)
    return written


class _Writer:
    def __init__(
        self, model: onnx.ModelProto, placement: Placement, params: Mapping[str, QuantParams], dialect: Dialect
    ) -> None:
        self._graph, self._placement, self._params, self._dialect = model.graph, placement, params, dialect
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._producers = {name: node.op_type for node in model.graph.node for name in node.output}
        self._scales: dict[str, np.ndarray] = {}  # tensor -> scale as written
        self._before: list[onnx.NodeProto] = []  # nodes that turn constants back into floats

    def write(self) -> None:
        graph = self._graph
        pairs = {name: self._pair(name) for name in self._placement.activations if self._has_pair(name)}
        chosen = set(self._placement.nodes)
        nodes: list[onnx.NodeProto] = [*(n for v in graph.input for n in pairs.get(v.name, ()))]
        for node in graph.node:
            if node.name in chosen:
                self._quantize_constants(node)
            for index, name in enumerate(node.input):
                if name in pairs and name not in self._outputs:
                    node.input[index] = pairs[name][1].output[0]
            for index, name in enumerate(node.output):
                if name in pairs and name in self._outputs:
                    node.output[index] = pairs[name][0].input[0]
            nodes.append(node)
            nodes += [
                pair
                for name in self._placement.activations
                if name in pairs and _writes(node, pairs[name])
                for pair in pairs[name]
            ]
        copied = [*self._before, *nodes]
        replaced = [onnx.NodeProto.FromString(node.SerializeToString()) for node in copied]
        del graph.node[:]
        graph.node.extend(replaced)
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]

    def _has_pair(self, name: str) -> bool:
        return name not in self._outputs or self._producers.get(name) in self._dialect.pair_after_last

    def _pair(self, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        scale, zero = self._activation(name)
        self._scales[name] = scale
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero_point", zero)
        is_output = name in self._outputs
        start, end = (f"{name}_float", name) if is_output else (name, f"{name}_dequantized")
        parameters = [f"{name}_scale", f"{name}_zero_point"]
        return (
            helper.make_node("QuantizeLinear", [start, *parameters], [f"{name}_quantized"], name=f"{name}_Q"),
            helper.make_node("DequantizeLinear", [f"{name}_quantized", *parameters], [end], name=f"{name}_DQ"),
        )

    def _activation(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of an activation, as the dialect writes them."""
        found = self._of(self._placement.source[name])
        if self._dialect.activations == "s8":
            return np.float32(found.scale), np.int8(0)  # type: ignore[return-value]  # 0-d
        if self._dialect.activations == "u8":
            return np.float32(found.scale), np.uint8(0 if name in self._placement.never_negative else 128)  # type: ignore[return-value]
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        scale = np.float32(max(high - low, 1e-12) / 255)
        return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))  # type: ignore[return-value]

    def _quantize_constants(self, node: onnx.NodeProto) -> None:
        weight = next((name for name in node.input[1:2] if name in self._placement.weights), None)
        if weight is None:
            return
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        scale = self._weight_scale(weight, node.input[0], bias)
        values = numpy_helper.to_array(self._constants[weight])
        axis = self._placement.weights[weight]
        limit = 2 ** (self._dialect.weight_bits - 1) - 1
        shape = [-1 if index == axis else 1 for index in range(values.ndim)]
        integers = np.clip(np.rint(values / scale.reshape(shape)), -limit, limit).astype(np.int8)
        node.input[1] = self._dequantized(f"{node.name}_weight", integers, scale, np.zeros(scale.shape, np.int8), axis)
        if bias is not None and self._dialect.int32_bias:
            bias_scale = (scale * self._scales[node.input[0]]).astype(np.float32)
            numbers = np.rint(numpy_helper.to_array(self._constants[bias]) / bias_scale.astype(np.float64))
            if not bool((np.abs(numbers) <= _INT32).all()):
                raise QuantizationError(
                    f"layer '{node.name}': its bias does not fit in 32 bits at scale {bias_scale.min():.3g}"
                )
            zero = np.zeros(bias_scale.shape, np.int32)
            node.input[2] = self._dequantized(f"{node.name}_bias", numbers.astype(np.int32), bias_scale, zero, 0)

    def _weight_scale(self, weight: str, data: str, bias: str | None) -> np.ndarray:
        """Per channel; coarser where a weight next to nothing would leave its INT32 bias no room."""
        scale: np.ndarray = (
            np.asarray(self._of(weight).scale, np.float64) * 127 / (2 ** (self._dialect.weight_bits - 1) - 1)
        )
        if bias is not None and self._dialect.int32_bias:
            values = np.abs(numpy_helper.to_array(self._constants[bias]).astype(np.float64))
            scale = np.maximum(scale, values / (float(self._scales[data]) * 2**30))
        return scale.astype(np.float32)

    def _dequantized(self, name: str, integers: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> str:
        for suffix, array in (("quantized", integers), ("scale", scale), ("zero_point", zero)):
            self._constant(f"{name}_{suffix}", array)
        inputs = [f"{name}_{suffix}" for suffix in ("quantized", "scale", "zero_point")]
        self._before.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_DQ", axis=axis))
        return name

    def _of(self, name: str) -> QuantParams:
        if name not in self._params:
            raise QuantizationError(f"tensor '{name}': no quantization parameters; calibrate it")
        found = self._params[name]
        if not bool(np.all(np.isfinite(found.scale)) and np.all(np.asarray(found.scale) > 0)):
            raise QuantizationError(f"tensor '{name}': its scale must be positive and finite, got {found.scale}")
        return found

    def _constant(self, name: str, array: np.ndarray) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))


def _writes(node: onnx.NodeProto, pair: tuple[onnx.NodeProto, onnx.NodeProto]) -> bool:
    return pair[0].input[0] in node.output
