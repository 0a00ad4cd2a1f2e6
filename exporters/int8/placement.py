"""Which nodes run in INT8, and which tensors get a Q/DQ pair. One pass, the same for every target."""

import dataclasses
import math
from collections.abc import Collection, Mapping

import onnx
from onnx import numpy_helper

from ...core.errors import QuantizationError
from ..graph.names import names_read
from ..graph.onnx_file import subgraphs

WEIGHTED = ("Conv", "Gemm", "MatMul")
TRANSPOSED = "ConvTranspose"
FLOAT_RESULT = ("Gemm", "MatMul")  # run in INT8 with a float result too: a pair stands behind them only for a reader
_JOINING = ("Add", "Mul", "Concat")  # every input of theirs has to be INT8
_POOLING = ("GlobalAveragePool", "AveragePool")
_PASSING = (
    "MaxPool",
    "Flatten",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
)  # values go through unchanged
FUSED = ("Relu", "Clip")  # become part of the node before them
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where INT8 goes in one graph."""

    nodes: tuple[str, ...]  # names of the nodes that run in INT8
    activations: tuple[str, ...]  # tensors that get a pair, in the graph's order; parameters are found for each source
    weights: Mapping[str, int]  # initializer -> axis of its output channels
    one_scale: frozenset[str]  # of these, those that take one scale, not one for each channel
    source: Mapping[str, str]  # activation -> the tensor whose parameters it has (itself, or what passed through to it)
    never_negative: frozenset[str]  # activations that cannot be below zero
    upper: Mapping[str, float]  # activation -> what a Clip from zero keeps it under


def place(model: onnx.ModelProto, keep_float: Collection[str] = (), transposed: bool = False) -> Placement:
    """Place INT8 on a canonical float graph.

    A node is taken if all it computes on can be INT8: weights must be constants, a joining node's inputs activations;
    what only moves, adds or averages values is taken where one of them is INT8 already. The output of a node whose only
    reader is a Relu gets no pair of its own: runtimes fuse the two only without one between.

    Args:
        keep_float: names of nodes that stay in float.
        transposed: take transposed convolutions too, but for those in groups. Their weights take one scale: TensorRT
            wants scales along the input channels (NVIDIA/TensorRT#2380), others along the output channels.

    Raises:
        QuantizationError: a name in `keep_float` that no node has.
    """
    missing = sorted(set(keep_float) - {node.name for node in model.graph.node})
    if missing:
        raise QuantizationError(f"keep_float: the graph has no node '{missing[0]}'")
    graph = _Graph(model, transposed)
    nodes: list[str] = []
    weights: dict[str, int] = {}
    wanted: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in keep_float or not graph.can_be_int8(node, wanted):
            continue
        nodes.append(node.name)
        if node.op_type in graph.weighted:
            weights[node.input[1]] = _channel_axis(node)
        inputs = node.input[:1] if node.op_type not in _JOINING else node.input
        ends = [] if node.op_type in FLOAT_RESULT else [graph.end_of(node)]
        wanted |= dict.fromkeys([*inputs, *ends])
    order = [*(value.name for value in model.graph.input), *(name for node in model.graph.node for name in node.output)]
    activations = tuple(name for name in order if name in wanted)
    found = graph.sources(wanted)
    source = {name: found.get(name, name) for name in activations}
    negative_free, caps = graph.never_negative(), graph.caps()
    return Placement(
        nodes=tuple(nodes),
        activations=activations,
        weights=weights,
        one_scale=frozenset(
            node.input[1] for node in model.graph.node if node.op_type == TRANSPOSED and node.name in nodes
        ),
        source=source,
        never_negative=frozenset(name for name in activations if name in negative_free),
        upper={name: caps[source[name]] for name in activations if source[name] in caps},
    )


def never_negative(model: onnx.ModelProto) -> set[str]:
    """Outputs of nodes that cannot be below zero, whatever goes in."""
    return _Graph(model).never_negative()


def tensors_to_observe(placement: Placement) -> tuple[str, ...]:
    """The activations whose ranges calibration has to find."""
    return tuple(dict.fromkeys(placement.source[name] for name in placement.activations))


class _Graph:
    def __init__(self, model: onnx.ModelProto, transposed: bool = False) -> None:
        self.weighted = (*WEIGHTED, TRANSPOSED) if transposed else WEIGHTED
        self._nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._elsewhere = {value.name for value in model.graph.output}  # read by more than the graph's own nodes
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
            for graph in subgraphs(node):
                self._elsewhere |= names_read(graph)
        self._floats = {
            value.name
            for value in [
                *onnx.shape_inference.infer_shapes(model).graph.value_info,
                *model.graph.input,
                *model.graph.output,
            ]
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }
        # Tied weights have one axis of scales, their first reader's, and whoever needs the other one stays in float:
        # whatever else does, or parameters that are found once would not do for every choice of layers.
        self._axes: dict[str, int] = {}
        for node in self._nodes:
            if self._multiplies(node):
                self._axes.setdefault(node.input[1], _channel_axis(node))

    def can_be_int8(self, node: onnx.NodeProto, wanted: Mapping[str, None]) -> bool:
        if node.output[0] not in self._floats:
            return False
        if node.op_type in self.weighted:
            return self._multiplies(node) and self._axes[node.input[1]] == _channel_axis(node)
        if node.op_type in _JOINING:
            activations = all(name in self._floats and name not in self.constants for name in node.input)
            return activations and not self._closes_gelu(node) and any(name in wanted for name in node.input)
        return node.op_type in (*_PASSING, *_POOLING) and node.input[0] in wanted  # not worth a pair of its own

    def _multiplies(self, node: onnx.NodeProto) -> bool:
        """Whether it does by constant weights, in a form that has INT8 kernels."""
        if node.op_type not in self.weighted or node.output[0] not in self._floats:
            return False
        plain = node.op_type != "Gemm" or all(_attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        plain = plain and (node.op_type != TRANSPOSED or _attribute(node, "group", 1) == 1)
        return plain and not _attribute(node, "transA", 0) and self._is_constant(node)

    def _closes_gelu(self, node: onnx.NodeProto) -> bool:
        """`x * (1 + erf(...))`: runtimes fuse the whole pattern to one kernel, as long as no pair stands inside it."""
        sums = [self._makers[name] for name in node.input if name in self._makers and node.op_type == "Mul"]
        terms = [name for each in sums if each.op_type == "Add" for name in each.input if name in self._makers]
        return any(self._makers[name].op_type == "Erf" for name in terms)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Weight and bias are float constants, and the bias has one number per output channel."""
        weight = self.constants.get(node.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            return False
        spatial = node.op_type in ("Conv", TRANSPOSED)
        if (len(weight.dims) < 3) if spatial else (len(weight.dims) != 2):
            return False
        if len(node.input) < 3 or not node.input[2]:
            return True
        bias = self.constants.get(node.input[2])
        if bias is None or bias.data_type != onnx.TensorProto.FLOAT:
            return False
        channels = weight.dims[_channel_axis(node)]
        return math.prod(bias.dims) == channels and tuple(bias.dims[-1:]) == (channels,)

    def end_of(self, node: onnx.NodeProto) -> str:
        """The tensor that carries a node's result: its output, or that of the activation fused to it."""
        output: str = node.output[0]
        readers = self._readers.get(output, [])
        fusable = len(readers) == 1 and readers[0].op_type in FUSED and output not in self._elsewhere
        if fusable and (node.op_type in self.weighted or node.op_type == "Add") and self._clips_at_zero(readers[0]):
            output = readers[0].output[0]
        return output

    def _clips_at_zero(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Relu" or self._bound(node, 1) == 0.0

    def _bound(self, node: onnx.NodeProto, index: int) -> float | None:
        """A Clip's lower (1) or upper (2) bound, where it is a constant."""
        tensor = self.constants.get(node.input[index]) if len(node.input) > index else None
        return None if tensor is None else float(numpy_helper.to_array(tensor).item())

    def caps(self) -> dict[str, float]:
        """Outputs of a Clip from zero, and its upper bound."""
        found = {}
        for node in self._nodes:
            upper = self._bound(node, 2) if node.op_type == "Clip" and self._clips_at_zero(node) else None
            if upper is not None and 0 < upper < math.inf:
                found[node.output[0]] = upper
        return found

    def sources(self, wanted: Mapping[str, None]) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in self._nodes:
            if node.op_type in _PASSING and node.input[0] in wanted and node.output[0] in wanted:
                found[node.output[0]] = found.get(node.input[0], node.input[0])
        return found

    def never_negative(self) -> set[str]:
        found: set[str] = set()
        for node in self._nodes:
            through = node.op_type in (*_PASSING, *_POOLING, "Concat", "Add") and all(
                name in found for name in (node.input if node.op_type in _JOINING else node.input[:1])
            )
            if through or node.op_type in _NEVER_NEGATIVE or (node.op_type == "Clip" and self._clips_at_zero(node)):
                found.add(node.output[0])
        return found


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _attribute(node, "transB", 0)):
        return 0
    return 1


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(attribute.f if attribute.type == onnx.AttributeProto.FLOAT else attribute.i)
    return default
