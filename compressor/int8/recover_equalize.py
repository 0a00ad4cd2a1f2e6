"""Cross-layer equalization: channels of two layers in a row get weights of the same size, the function stays."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ...exporters.graph.graph_index import GraphIndex, attribute, replaced
from ...exporters.graph.graph_stats import Shapes, shapes_of

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ELEMENTWISE = ("Relu", "LeakyRelu", "Identity")  # f(ax) = a f(x) for a > 0, as for these
_POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool")
_FLATTENING = ("Flatten", "Reshape", "Squeeze")
_SWEEPS, _SETTLED = 60, 1e-3  # a chain of layers needs several; the largest |ln s| of the last one


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two weighted layers with nothing between them but what keeps channels apart and scales with its input."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    bound: float  # what a Clip between them keeps values under
    rectified: bool  # values below zero do not pass
    repeat: int  # inputs of the second per channel of the first, behind a Flatten


def pairs(model: onnx.ModelProto) -> list[Pair]:
    """Every pair whose weights can be changed: nothing else reads them, or what lies between."""
    graph, shapes = GraphIndex(model), shapes_of(model, 1)
    return [pair for node in graph.nodes if (pair := _pair(node, graph, shapes)) is not None]


def tensors(model: onnx.ModelProto) -> dict[str, int]:
    """Outputs of the first layers, whose ranges `equalize` needs, and the axis of their channels."""
    return {pair.first.output[0]: 1 if pair.first.op_type == "Conv" else -1 for pair in pairs(model)}


def equalize(model: onnx.ModelProto, ranges: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, str]:
    """Scale channel i of a layer by 1 / s_i and what the next one multiplies it with by s_i, until both are alike.

    `s_i = sqrt(r1_i / r2_i)` with `r` the largest absolute weights of the channel in either layer: equation 11 of Nagel
    et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019). Two bounds on s_i, which
    that method does not have, because activations are quantized per tensor too: no channel grows past the largest one,
    and none past the bound of a Clip (ReLU6). A channel that the Clip does cut off keeps s_i = 1: its bound would
    become its own, which no Clip can say. (The paper puts ReLU in place of ReLU6, which is another function.)

    Args:
        model: a canonical float graph; not changed.
        ranges: of `tensors`, `(2, channels)`: smallest and largest value.

    Returns:
        The graph, which computes the same within rounding; and what was done.
    """
    found = [pair for pair in pairs(model) if pair.first.output[0] in ranges]
    values = constants(model, found)
    peaks = [_peaks(pair, ranges) for pair in found]
    ceilings = [min(float(peak.max(initial=0.0)), pair.bound) for pair, peak in zip(found, peaks, strict=True)]
    for _ in range(_SWEEPS):
        largest = 0.0
        for index, pair in enumerate(found):
            scale = _scale(*sizes(pair, values), peaks[index], ceilings[index], pair.bound)
            rescale(pair, scale, values)
            peaks[index] = peaks[index] / scale
            largest = max(largest, float(np.abs(np.log(scale)).max(initial=0.0)))
        if largest < _SETTLED:
            break
    return replaced(model, values), _told(found, peaks)


def rescale(pair: Pair, scale: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    """Divide the channels of the first layer by `scale` and multiply what the second does with them; in place.

    Args:
        scale: positive, `(channels,)`.
        values: of `constants`.
    """
    rows, columns = _rows(pair, values), _columns(pair, values)  # views
    rows /= scale.reshape(-1, *(1,) * (rows.ndim - 1))
    columns *= scale.reshape(len(columns), 1, -1, 1)
    if _has_bias(pair.first):
        bias = values[pair.first.input[2]]
        bias /= scale


def sizes(pair: Pair, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute weight of each channel in the first layer and in the second."""
    rows, columns = _rows(pair, values), _columns(pair, values)
    return np.abs(rows).max(tuple(range(1, rows.ndim))), np.abs(columns).max((1, 3)).reshape(-1)


def constants(model: onnx.ModelProto, found: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Weights and biases of all pairs, in float64: they are rounded once, at the end."""
    graph = GraphIndex(model)
    names = {name for pair in found for node in (pair.first, pair.second) for name in node.input[1:] if name}
    values = {name: graph.constant(name) for name in sorted(names)}
    return {name: value.astype(np.float64) for name, value in values.items() if value is not None}


def _told(found: list[Pair], peaks: list[np.ndarray]) -> str:
    cut = sum(int((peak > pair.bound).sum()) for pair, peak in zip(found, peaks, strict=True))
    told = f"equalized {len(found)} pairs of layers"
    return f"{told}; {cut} channels that a Clip cuts off keep their size" if cut else told


def _scale(r1: np.ndarray, r2: np.ndarray, peaks: np.ndarray, ceiling: float, bound: float) -> np.ndarray:
    """What to divide each channel by; 1 for a channel without weights on one side, or cut off at `bound`."""
    alive = (r1 > 0) & (r2 > 0)
    scale = np.sqrt(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0))
    if ceiling > 0:
        scale = np.maximum(scale, peaks / ceiling)
    return np.asarray(np.where(alive & (peaks <= bound), scale, 1.0))


def _peaks(pair: Pair, ranges: Mapping[str, np.ndarray]) -> np.ndarray:
    """The largest value of each channel that the second layer may see."""
    low, high = ranges[pair.first.output[0]].astype(np.float64)
    return np.asarray(np.maximum(0.0 if pair.rectified else -low, high))


def _rows(pair: Pair, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What makes each channel: a view `(channels, ...)` of the first weight."""
    weight = values[pair.first.input[1]]
    transposed: np.ndarray = weight.T
    return weight if pair.first.op_type == "Conv" or attribute(pair.first, "transB", 0) else transposed


def _columns(pair: Pair, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What reads each channel: a view `(groups, outputs, channels per group, ...)` of the second weight."""
    node, weight = pair.second, values[pair.second.input[1]]
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    if attribute(node, "transB", 0):
        return weight.reshape(1, len(weight), -1, pair.repeat)
    return weight.reshape(1, -1, pair.repeat, weight.shape[1]).transpose(0, 3, 1, 2)


def _pair(first: onnx.NodeProto, graph: GraphIndex, shapes: Shapes) -> Pair | None:
    bound, rectified, repeat = math.inf, False, 0  # repeat: once there was a Flatten
    name = first.output[0]
    if not _can_be_first(first, graph):
        return None
    while (node := graph.only_reader(name)) is not None and node.input[0] == name:
        if node.op_type in _WEIGHTED:
            flat = (first.op_type == "Conv") == (node.op_type == "Conv")
            fits = _can_be_second(node, graph, _channels(first, graph) * max(repeat, 1)) and flat == (repeat == 0)
            return Pair(first, node, bound, rectified, max(repeat, 1)) if fits else None
        if node.op_type in _FLATTENING and first.op_type == "Conv":
            repeat = _repeat(node, shapes)
        elif node.op_type == "Clip":
            bound, rectified = min(bound, _cap(node, graph)), True
        elif not _homogeneous(node, first.op_type == "Conv"):
            return None
        if bound == 0 or (repeat == 0 and node.op_type in _FLATTENING):
            return None
        rectified, name = rectified or node.op_type == "Relu", node.output[0]
    return None


def _homogeneous(node: onnx.NodeProto, of_images: bool) -> bool:
    return (node.op_type in _ELEMENTWISE or (of_images and node.op_type in _POOLING)) and len(node.output) == 1


def _can_be_first(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    if node.op_type not in _WEIGHTED or attribute(node, "transA", 0):
        return False
    weight = graph.own_constant(node.input[1])
    if weight is None or not (weight.ndim > 2 if node.op_type == "Conv" else weight.ndim == 2):
        return False
    bias = graph.own_constant(node.input[2]) if _has_bias(node) else np.zeros(_channels(node, graph))
    return bias is not None and bias.shape[-1:] == (bias.size,) == (_channels(node, graph),)


def _can_be_second(node: onnx.NodeProto, graph: GraphIndex, inputs: int) -> bool:
    weight = graph.own_constant(node.input[1])
    if weight is None or attribute(node, "transA", 0):
        return False
    if node.op_type == "Conv":
        return weight.ndim > 2 and weight.shape[1] * attribute(node, "group", 1) == inputs
    return weight.ndim == 2 and weight.shape[1 if attribute(node, "transB", 0) else 0] == inputs


def _channels(node: onnx.NodeProto, graph: GraphIndex) -> int:
    """Output channels of a weighted node whose weight is a constant."""
    weight = graph.constant(node.input[1])
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    return 0 if weight is None else int(weight.shape[axis])


def _has_bias(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _cap(node: onnx.NodeProto, graph: GraphIndex) -> float:
    """The upper bound of a Clip from zero; 0 for any other."""
    low, high = (graph.constant(name) if name else None for name in [*node.input[1:], "", ""][:2])
    if low is None or float(low.item()) != 0.0 or (len(node.input) > 2 and node.input[2] and high is None):
        return 0.0
    return math.inf if high is None else max(float(high.item()), 0.0)


def _repeat(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Numbers per channel where `(N, C, ...)` becomes `(N, F)`; 0 where a node does something else."""
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    if len(before) < 3 or after != (before[0], math.prod(before[1:])):
        return 0
    return math.prod(before[2:])
