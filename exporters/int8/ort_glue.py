"""What stands between products, transformers above all, in the form that ONNX Runtime's CPU provider runs fastest.

Standard operators before and after, and the same numbers but for the order of a sum. What gains was measured, see
docs/guide.md.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph.graph_index import GraphIndex
from ..graph.names import names_read, unused
from ..graph.unread import drop_nodes
from . import ort_gelu
from .placement import FLOAT_RESULT

_MARKS = ("ReduceMean", "Sub")  # with these two begins a normalization that is written out
Dim = int | tuple[str, int]  # a number, or an axis of a tensor whose length is not known


def rewrite(model: onnx.ModelProto) -> None:
    """Rewrite a graph in place; names of inputs, outputs and all nodes that stay are kept."""
    _sums_before_norms(model)
    _whole_transposes(model)
    _rectifiers_of_products(model)
    _guards_of_softmax(model)
    ort_gelu.rewrite(model)


def _sums_before_norms(model: onnx.ModelProto) -> None:
    """A residual Add in front of a normalization -> Sum.

    ONNX Runtime fuses the Add to SkipLayerNormalization, which takes eight times as long as the two apart.
    """
    graph = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type != "Add" or any(graph.is_constant(name) for name in node.input):
            continue
        readers = {reader.op_type for reader in graph.readers(node.output[0])}
        if "LayerNormalization" in readers or readers.issuperset(_MARKS):
            node.op_type = "Sum"


def _whole_transposes(model: onnx.ModelProto) -> None:
    """Reshape, Transpose, Reshape that only swap the last two axes -> one Transpose.

    So torch.onnx writes the keys of an attention of dynamic shape, with eight nodes to compute the two shapes.
    """
    graph = GraphIndex(model)
    shapes, done = _Shapes(graph), set[str]()
    for node in model.graph.node:
        first = graph.producers.get(node.input[0]) if node.op_type == "Transpose" and _perm(node) == (0, 2, 1) else None
        last = graph.only_reader(node.output[0])
        if first is None or last is None or (first.op_type, last.op_type) != ("Reshape", "Reshape"):
            continue
        data = first.input[0]
        before, flat, after = (shapes.of_tensor(data), shapes.values(first.input[1]), shapes.values(last.input[1]))
        if before is None or flat is None or after is None or len(before) < 4:
            continue
        *outer, rows, columns = before
        if flat == [-1, rows, columns] and after == [*outer, columns, rows] and last.input[0] == node.output[0]:
            node.input[0] = data
            node.output[0] = last.output[0]
            perm = [*range(len(outer)), len(outer) + 1, len(outer)]
            node.attribute[0].CopyFrom(helper.make_attribute("perm", perm))
            done.add(last.name)
    drop_nodes(model, done)


def _rectifiers_of_products(model: onnx.ModelProto) -> None:
    """`Relu(x)` -> `Max(x, 0)` where an INT8 product ends in it and only float nodes read it.

    ONNX Runtime fuses a product to a Relu before it looks at the pairs around the two; with none behind them the float
    kernel is left, and the weight is turned back into floats in every run.
    """
    graph, outputs = GraphIndex(model), {value.name for value in model.graph.output}
    for node in [node for node in model.graph.node if node.op_type == "Relu" and node.output[0] not in outputs]:
        maker = graph.producers.get(node.input[0])
        if maker is None or maker.op_type not in FLOAT_RESULT:
            continue
        weight = graph.producers.get(maker.input[1])
        paired = any(reader.op_type == "QuantizeLinear" for reader in graph.readers(node.output[0]))
        if weight is not None and weight.op_type == "DequantizeLinear" and not paired:
            zero = unused(f"{node.input[0]}_zero", names_read(model.graph) | set(graph.producers))
            model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), zero))
            node.op_type = "Max"
            node.input.append(zero)


def _guards_of_softmax(model: onnx.ModelProto) -> None:
    """`Where(IsNaN(p), 0, p)` -> p, the Softmax of a product and of a mask that is finite.

    So torch.onnx writes an attention. Of a finite row the Softmax is never NaN, masked as a whole or not; of -inf alone
    it would be.
    """
    graph, done = GraphIndex(model), set[str]()
    for node in [node for node in graph.nodes if node.op_type == "Where"]:
        asked, softmax = (graph.producers.get(node.input[index]) for index in (0, 2))
        if asked is None or softmax is None or (asked.op_type, softmax.op_type) != ("IsNaN", "Softmax"):
            continue
        zero, inside = graph.constant(node.input[1]), asked.input[0] == node.input[2]
        alone = len(graph.readers(node.input[2])) == 2 and graph.only_reader(asked.output[0]) is not None
        if inside and alone and zero is not None and not zero.any() and _finite(graph, softmax.input[0]):
            softmax.output[0] = node.output[0]
            done |= {node.name, asked.name}
    drop_nodes(model, done)


def _finite(graph: GraphIndex, name: str) -> bool:
    """Whether a tensor is, as long as the products before it are."""
    constant, node = graph.constant(name), graph.producers.get(name)
    if constant is not None or node is None:
        return constant is not None and bool(np.isfinite(constant).all())
    if node.op_type in ("Add", "Where"):
        return all(_finite(graph, each) for each in node.input[node.op_type == "Where" :])
    return node.op_type == "MatMul"


class _Shapes:
    """Shapes and vectors of integers, as far as constants and the shapes of other tensors give them."""

    def __init__(self, graph: GraphIndex) -> None:
        self._graph = graph

    def of_tensor(self, name: str) -> list[Dim] | None:
        """The shape of a tensor that a Reshape made, or a Transpose behind one."""
        node = self._graph.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Transpose":
            inner, perm = self.of_tensor(node.input[0]), _perm(node)
            return None if inner is None or len(perm) != len(inner) else [inner[axis] for axis in perm]
        asked = self.values(node.input[1]) if node.op_type == "Reshape" else None
        # -1 and 0 leave a length to be found: it is what it is.
        return None if asked is None else [(name, i) if dim in (-1, 0) else dim for i, dim in enumerate(asked)]

    def values(self, name: str) -> list[Dim] | None:
        """A vector of integers."""
        constant = self._graph.integers(name)
        if constant is not None:
            return list(constant)
        node = self._graph.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Concat":
            parts = [self.values(part) for part in node.input]
            return None if None in parts else [dim for part in parts for dim in part or ()]
        if node.op_type == "Shape":
            return self._shape(node)
        found = self.values(node.input[0]) if node.op_type in ("Slice", "Gather") else None
        if found is None:
            return None
        return self._slice(node, found) if node.op_type == "Slice" else self._gather(node, found)

    def _shape(self, node: onnx.NodeProto) -> list[Dim] | None:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        shape = self.of_tensor(node.input[0])
        if shape is None and "end" in ends and 0 <= ends.get("start", 0) < ends["end"]:
            return [(node.input[0], axis) for axis in range(ends.get("start", 0), ends["end"])]
        return None if shape is None else shape[ends.get("start", 0) : ends.get("end", len(shape))]

    def _slice(self, node: onnx.NodeProto, values: list[Dim]) -> list[Dim] | None:
        numbers = [self._graph.integers(name) for name in node.input[1:]]
        if any(found is None or len(found) != 1 for found in numbers):
            return None
        start, end, axis, step = ([*(found[0] for found in numbers if found is not None), 0, 1])[:4]
        return values[start:end] if (axis, step) == (0, 1) else None

    def _gather(self, node: onnx.NodeProto, values: list[Dim]) -> list[Dim] | None:
        chosen = self._graph.integers(node.input[1])
        if chosen is None or any(index >= len(values) for index in chosen):
            return None
        return [values[index] for index in chosen]


def _perm(node: onnx.NodeProto) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), ())
