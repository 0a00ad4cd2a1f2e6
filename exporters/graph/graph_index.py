"""Who makes and who reads each tensor of a graph, and its float constants."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from .names import names_read, reads, unused


class GraphIndex:
    """A read-only view of `model`, which must not change meanwhile."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: Sequence[onnx.NodeProto] = list(model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        # A graph output is read by whoever runs the graph: a node without a name.
        self._readers = {value.name: [onnx.NodeProto()] for value in model.graph.output}
        for node in self.nodes:
            for name in reads(node):
                self._readers.setdefault(name, []).append(node)

    def readers(self, name: str) -> Sequence[onnx.NodeProto]:
        """Who reads a tensor; a node without a name stands for whoever runs the graph."""
        return self._readers.get(name, ())

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads it, or None where there are others or it leaves the graph."""
        found = self.readers(name)
        return found[0] if len(found) == 1 and found[0].op_type else None

    def constant(self, name: str) -> np.ndarray | None:
        """A float constant, or None where it is none."""
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def is_constant(self, name: str) -> bool:
        """Whether a name is that of an initializer, of any type."""
        return name in self._constants

    def integers(self, name: str) -> list[int] | None:
        """An INT64 constant as a list, or None where it is none."""
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.INT64:
            return None
        return [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]

    def own_constant(self, name: str) -> np.ndarray | None:
        """A float constant that one node reads, so that it can be changed for that node."""
        return self.constant(name) if self.only_reader(name) is not None else None


def replaced(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of the model with other values in these initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))
    return copy


def with_own_vectors(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no two nodes read one float vector: gains and biases that are equal are often stored once."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    vectors = {t.name: t for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == onnx.TensorProto.FLOAT}
    taken = names_read(model.graph) | {name for node in model.graph.node for name in node.output}
    used: set[str] = set()
    for node in copy.graph.node:
        for name in sorted(set(node.input) & vectors.keys() & used):
            own = unused(name, taken)
            copy.graph.initializer.append(vectors[name])
            copy.graph.initializer[-1].name = own
            for index in [index for index, read in enumerate(node.input) if read == name]:
                node.input[index] = own
        used.update(node.input)
    return copy


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((found.i for found in node.attribute if found.name == name), default)
