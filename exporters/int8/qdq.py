"""Float graph + QuantParams -> explicit Q/DQ, in any dialect. The only writer there is."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...core.errors import QuantizationError
from ...core.values import QuantParams
from ..graph.names import names_read, unused
from ..graph.unread import drop_unread_constants
from .dialect import Dialect
from .placement import TRANSPOSED, Placement, place

DIALECT_NOTE = "edgesmith.activations"  # in the file: whose zero points these are, which a reader cannot tell by itself
_TINY = float(np.finfo(np.float32).tiny)  # the smallest scale that a float32 holds in full


def weight_params(model: onnx.ModelProto, placement: Placement, per_tensor: bool = False) -> dict[str, QuantParams]:
    """Symmetric parameters from the largest absolute weight of each output channel, or of the whole tensor; 8 bits.

    Args:
        per_tensor: one scale for every weight, else only where the placement says so.
    """
    found = {}
    for tensor in model.graph.initializer:
        axis = placement.weights.get(tensor.name)
        if axis is None:
            continue
        weight = numpy_helper.to_array(tensor)
        largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
        bound = float(largest.max(initial=0.0))
        if per_tensor or tensor.name in placement.one_scale:
            found[tensor.name] = activation_params(-bound, bound, "largest absolute weight")
            continue
        # Any scale will do for a channel of zeros, but its bias is rounded to that scale too.
        scale = np.where(largest > 0, largest, bound or 1.0) / 127
        found[tensor.name] = QuantParams(
            low=-bound, high=bound, scale=scale.astype(np.float32), axis=axis, origin="largest absolute weight"
        )
    return found


def activation_params(low: float, high: float, origin: str) -> QuantParams:
    """Symmetric per-tensor parameters for values in `[low, high]`, 8 bits."""
    bound = max(abs(low), abs(high))
    if bound == 0:  # nothing but zeros was seen, as behind a dead Relu: any scale will do
        high = bound = 1.0
    return QuantParams(low=low, high=high, scale=np.float32(bound / 127), origin=origin)  # type: ignore[arg-type]  # 0-d


def weight_grid(params: QuantParams, ndim: int, axis: int, dialect: Dialect) -> tuple[np.ndarray, int]:
    """Scale of a weight of `ndim` axes as the dialect writes it, shaped to be multiplied with it; the last level."""
    limit: int = 2 ** (dialect.weight_bits - 1) - 1
    wider = (2 ** (params.bits - 1) - 1) / limit
    return _shaped((np.asarray(params.scale, np.float64) * wider).astype(np.float32), ndim, axis), limit


def activation_grid(
    params: QuantParams, name: str, placement: Placement, dialect: Dialect
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the activation `name`, as the dialect writes them; both 0-d."""
    if dialect.activations == "s8":
        return np.asarray(params.scale, np.float32), np.asarray(0, np.int8)
    if dialect.activations in ("u8", "s8-shifted"):
        scale, zero = float(params.scale), 0 if name in placement.never_negative else 128
    else:
        low, high = min(params.low, 0.0), max(params.high, 0.0)
        scale = max(high - low, 1e-12) / 255
        zero = int(np.clip(round(-low / scale), 0, 255))
    if zero == 0 and name in placement.upper:
        scale = min(scale, _widest(placement.upper[name]))
    signed = dialect.activations.startswith("s8")
    return np.asarray(scale, np.float32), np.asarray(zero - 128, np.int8) if signed else np.asarray(zero, np.uint8)


def write_qdq(
    model: onnx.ModelProto,
    params: Mapping[str, QuantParams],
    dialect: Dialect,
    keep_float: Collection[str] = (),
) -> onnx.ModelProto:
    """Write Q/DQ pairs where `placed` puts them.

    Args:
        model: a canonical float graph; not changed.
        params: of every weight, and of every tensor in `placement.tensors_to_observe`.
        dialect: how a pair is written.
        keep_float: names of nodes that stay in float.

    Raises:
        QuantizationError: parameters are missing, a scale is not positive; names the tensor.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    _Writer(written, placed(model, params, dialect, keep_float), params, dialect).write()
    written.metadata_props.add(key=DIALECT_NOTE, value=dialect.activations)
    onnx.checker.check_model(written)
    return written


def placed(
    model: onnx.ModelProto, params: Mapping[str, QuantParams], dialect: Dialect, keep_float: Collection[str] = ()
) -> Placement:
    """What `write_qdq` puts pairs around: transposed convolutions where the dialect takes them and they are known."""
    nodes = [node for node in model.graph.node if node.op_type == TRANSPOSED]
    unknown = [node.name for node in nodes if node.input[1] not in params]  # as after a training that left them out
    return place(model, {*keep_float, *unknown}, dialect.transposed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    """A Q/DQ pair: whoever made the tensor writes `start`, whoever reads it reads `end`."""

    start: str
    end: str
    nodes: tuple[onnx.NodeProto, ...]


class _Writer:
    def __init__(
        self, model: onnx.ModelProto, placement: Placement, params: Mapping[str, QuantParams], dialect: Dialect
    ) -> None:
        self._graph, self._placement, self._params, self._dialect = model.graph, placement, params, dialect
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._producers = {name: node.op_type for node in model.graph.node for name in node.output}
        chosen = set(placement.nodes)
        self._chosen = [node for node in model.graph.node if node.name in chosen]
        self._weighted = [node for node in self._chosen if node.input[1:2] and node.input[1] in placement.weights]
        self._scales: dict[str, float] = {}  # activation -> scale as written
        self._before: list[onnx.NodeProto] = []  # nodes that turn constants back into floats
        self._taken = names_read(model.graph) | set(self._producers) | {node.name for node in model.graph.node}

    def write(self) -> None:
        graph = self._graph
        read = {name for node in self._chosen for name in node.input}
        pairs = {name: self._pair(name) for name in self._placement.activations if self._has_pair(name, read)}
        self._quantize_constants()
        nodes = [part for value in graph.input if value.name in pairs for part in pairs[value.name].nodes]
        for node in graph.node:
            behind = [part for name in node.output if name in pairs for part in pairs[name].nodes]
            for index, name in enumerate(node.input):
                node.input[index] = pairs[name].end if name in pairs else name
            for index, name in enumerate(node.output):
                node.output[index] = pairs[name].start if name in pairs else name
            nodes += [node, *behind]
        copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in [*self._before, *nodes]]
        del graph.node[:]
        graph.node.extend(copied)
        drop_unread_constants(graph)
        del graph.value_info[:]

    def _has_pair(self, name: str, read: set[str]) -> bool:
        """Where an INT8 node reads it; else where the layer before it would not run in INT8 without one."""
        if name in read:
            return True
        return self._ends_in_pair(name) if name in self._outputs else not self._dialect.float_results

    def _ends_in_pair(self, name: str) -> bool:
        return name in self._outputs and self._producers.get(name) in self._dialect.pair_after_last

    def _pair(self, name: str) -> _Pair:
        scale, zero = activation_grid(self._of(self._placement.source[name]), name, self._placement, self._dialect)
        self._scales[name] = float(scale)
        parameters = [self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero_point", zero)]
        quantized = self._unused(f"{name}_quantized")
        if self._ends_in_pair(name):
            start, end = self._unused(f"{name}_float"), name
        else:
            start, end = name, self._unused(f"{name}_dequantized")
        return _Pair(
            start=start,
            end=end,
            nodes=(
                helper.make_node("QuantizeLinear", [start, *parameters], [quantized], name=self._unused(f"{name}_Q")),
                helper.make_node("DequantizeLinear", [quantized, *parameters], [end], name=self._unused(f"{name}_DQ")),
            ),
        )

    def _quantize_constants(self) -> None:
        scales = self._weight_scales()
        written = {name: self._weight(name, scale) for name, scale in scales.items()}
        for node in self._weighted:
            weight, data = node.input[1], node.input[0]
            node.input[1] = written[weight]
            if self._dialect.int32_bias and self._has_bias(node):
                node.input[2] = self._bias(node.input[2], np.asarray(scales[weight] * self._scales[data], np.float32))

    def _weight_scales(self) -> dict[str, np.ndarray]:
        """As calibration found them; coarser where a weight next to nothing would leave its INT32 bias no room."""
        limit = 2 ** (self._dialect.weight_bits - 1) - 1
        found: dict[str, np.ndarray] = {}
        for node in self._weighted:
            name, data = node.input[1], node.input[0]
            params = self._of(name)
            scale = found.get(name, np.asarray(params.scale, np.float64) * ((2 ** (params.bits - 1) - 1) / limit))
            if self._dialect.int32_bias and self._has_bias(node):
                least = np.maximum(np.abs(self._values(node.input[2])).reshape(-1) / 2**30, _TINY) / self._scales[data]
                scale = np.maximum(scale, least if scale.ndim else least.max())
            found[name] = scale
        return {name: np.asarray(scale, np.float32) for name, scale in found.items()}

    def _weight(self, name: str, scale: np.ndarray) -> str:
        """Written once, however many nodes read it."""
        values, axis = self._values(name), self._placement.weights[name]
        limit = 2 ** (self._dialect.weight_bits - 1) - 1
        integers = np.clip(np.rint(values / _shaped(scale, values.ndim, axis)), -limit, limit).astype(np.int8)
        return self._dequantized(name, integers, scale, axis)

    def _bias(self, name: str, scale: np.ndarray) -> str:
        """Written for every node, as its scale is that of the node's products."""
        integers = np.rint(self._values(name).reshape(-1) / scale).astype(np.int32)  # fits: see `_weight_scales`
        return self._dequantized(name, integers, scale, 0)

    def _dequantized(self, name: str, integers: np.ndarray, scale: np.ndarray, axis: int) -> str:
        inputs = [
            self._constant(f"{name}_quantized", integers),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(scale.shape, integers.dtype)),
        ]
        output = self._unused(f"{name}_dequantized")
        node = helper.make_node("DequantizeLinear", inputs, [output], name=self._unused(f"{name}_DQ"))
        if scale.ndim:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._before.append(node)
        return output

    def _has_bias(self, node: onnx.NodeProto) -> bool:
        return len(node.input) > 2 and bool(node.input[2])

    def _values(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._constants[name]).astype(np.float64)

    def _of(self, name: str) -> QuantParams:
        if name not in self._params:
            raise QuantizationError(f"tensor '{name}': no quantization parameters; calibrate it")
        found = self._params[name]
        if not bool(np.all(np.isfinite(found.scale)) and np.all(np.asarray(found.scale) > 0)):
            raise QuantizationError(f"tensor '{name}': its scale must be positive and finite, got {found.scale}")
        if not (np.isfinite(found.low) and np.isfinite(found.high)):
            raise QuantizationError(f"tensor '{name}': its range must be finite, got {found.low} to {found.high}")
        return found

    def _constant(self, name: str, array: np.ndarray) -> str:
        name = self._unused(name)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _unused(self, name: str) -> str:
        return unused(name, self._taken)


def _shaped(scale: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """A scale per channel laid along `axis`; one for the whole tensor as it is."""
    return scale.reshape([-1 if index == axis else 1 for index in range(ndim)]) if scale.ndim else scale


def _widest(upper: float) -> float:
    """The scale at which 255 steps from zero just do not pass `upper`, by not so much as a rounding.

    ONNX Runtime drops a Clip, and so fuses what stands before it, only where the integers end at or below its bound.
    """
    scale = np.float32(upper / 255)
    return float(scale if np.float32(255) * scale <= upper else np.nextafter(scale, np.float32(0)))
