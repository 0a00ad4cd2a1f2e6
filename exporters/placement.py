"""Which nodes run in INT8, and which tensors get a Q/DQ pair. One pass, the same for every target."""

import dataclasses
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_JOINING = ("Add", "Concat")  # every input of theirs has to be INT8
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
_FUSED = ("Relu", "Clip")  # become part of the node before them
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where INT8 goes in one graph."""

    nodes: tuple[str, ...]  # names of the nodes that run in INT8
    activations: tuple[str, ...]  # tensors that get a pair, in the graph's order; parameters are found for each source
    weights: Mapping[str, int]  # initializer -> axis of its output channels
    source: Mapping[str, str]  # activation -> the tensor whose parameters it has (itself, or what passed through to it)
    never_negative: frozenset[str]  # activations that cannot be below zero


def place(model: onnx.ModelProto) -> Placement:
    """Place INT8 on a canonical float graph.

    A node is taken if all it computes on can be INT8: weights must be constants, a joining node's inputs activations.
    The output of a node whose only reader is a Relu gets no pair: runtimes fuse the two only without one between.
    """
    graph = _Graph(model)
    nodes: list[str] = []
    weights: dict[str, int] = {}
    wanted: dict[str, None] = {}
    for node in model.graph.node:
        if not graph.can_be_int8(node, wanted):
            continue
        nodes.append(node.name)
        if node.op_type in _WEIGHTED:
            weights[node.input[1]] = _channel_axis(node)
        inputs = node.input[:1] if node.op_type not in _JOINING else node.input
        wanted |= dict.fromkeys([*inputs, graph.end_of(node)])
    order = [*(value.name for value in model.graph.input), *(name for node in model.graph.node for name in node.output)]
    activations = tuple(name for name in order if name in wanted)
    source = graph.sources(wanted)
    negative_free = graph.never_negative()
    return Placement(
        nodes=tuple(nodes),
        activations=activations,
        weights=weights,
        source={name: source.get(name, name) for name in activations},
        never_negative=frozenset(name for name in activations if name in negative_free),
    )


def tensors_to_observe(placement: Placement) -> tuple[str, ...]:
    """The activations whose ranges calibration has to find."""
    return tuple(dict.fromkeys(placement.source[name] for name in placement.activations))


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._floats = {
            value.name
            for value in [
                *onnx.shape_inference.infer_shapes(model).graph.value_info,
                *model.graph.input,
                *model.graph.output,
            ]
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }

    def can_be_int8(self, node: onnx.NodeProto, wanted: Mapping[str, None]) -> bool:
        if node.output[0] not in self._floats:
            return False
        if node.op_type in _WEIGHTED:
            bias = node.input[2:3]
            plain = node.op_type != "Gemm" or all(_attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
            known = self._is_weight(node) and all(name in self.constants for name in bias)
            return plain and known and not _attribute(node, "transA", 0)
        if node.op_type in _JOINING:
            return all(name in self._floats and name not in self.constants for name in node.input)
        if node.op_type in _PASSING:
            return node.input[0] in wanted  # not worth a pair of its own
        return node.op_type in _POOLING

    def _is_weight(self, node: onnx.NodeProto) -> bool:
        tensor = self.constants.get(node.input[1])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return False
        return len(tensor.dims) >= 3 if node.op_type == "Conv" else len(tensor.dims) == 2

    def end_of(self, node: onnx.NodeProto) -> str:
        """The tensor that carries a node's result: its output, or that of the activation fused to it."""
        output = node.output[0]
        readers = self._readers.get(output, [])
        fusable = len(readers) == 1 and readers[0].op_type in _FUSED and output not in self._outputs
        if fusable and (node.op_type in _WEIGHTED or node.op_type == "Add") and self._clips_at_zero(readers[0]):
            return readers[0].output[0]
        return output

    def _clips_at_zero(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Relu":
            return True
        low = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return low is not None and float(numpy_helper.to_array(low)) == 0.0

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
