"""Sums with zeros that are shaped at run time: what is left in a graph of a block that was taken out of a network."""

import numpy as np
import onnx

from .graph_view import GraphView, views
from .onnx_file import subgraphs
from .unread import drop_nodes

Shapes = dict[str, tuple[int | str, ...]]


def drop_added_zeros(model: onnx.ModelProto) -> None:
    """Put, in place, the other summand where a constant 0, expanded to that summand's shape, is added to it.

    ONNX Runtime folds such a sum only where the zeros are a constant. Shapes count as equal where every size of both is
    known, a dynamic one by its name. A sum that is an output of the graph stays, so does one that a subgraph reads, and
    every one of a model with local functions.
    """
    if model.functions:
        return
    view = next(views(model))
    zeros = _zeros(view)
    if not zeros:
        return
    shapes = _shapes(model)
    stands_for: dict[str, str] = {}
    for node in view.nodes:
        for place, name in enumerate(node.input):
            node.input[place] = stands_for.get(name, name)
        other = _other(node, zeros, shapes)
        if other is not None and _replaceable(view, node.output[0]):
            stands_for[node.output[0]] = other
    drop_nodes(model)


def _zeros(view: GraphView) -> set[str]:
    """Tensors that are 0 everywhere, shaped at run time: expanded from a constant, or such a one times a constant."""
    found: set[str] = set()
    for node in view.nodes:
        value = view.constant(node, 0) if node.op_type == "Expand" else None
        scaled = node.op_type == "Mul" and any(
            node.input[place] in found
            and (other := view.constant(node, 1 - place)) is not None
            and np.isfinite(other).all()
            for place in (0, 1)
        )
        if scaled or (value is not None and not np.any(value)):
            found.add(node.output[0])
    return found


def _other(node: onnx.NodeProto, zeros: set[str], shapes: Shapes) -> str | None:
    """What a sum with zeros is the same as; None: it is no such sum."""
    if node.op_type != "Add":
        return None
    pairs = (tuple(node.input), tuple(node.input)[::-1])
    return next((b for a, b in pairs if a in zeros and a in shapes and shapes[a] == shapes.get(b)), None)


def _replaceable(view: GraphView, name: str) -> bool:
    inside = any(True for reader in view.readers.get(name, ()) for _ in subgraphs(reader))
    return name not in view.outputs and not inside


def _shapes(model: onnx.ModelProto) -> Shapes:
    """Tensors all of whose sizes are known, a dynamic one by its name."""
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found: Shapes = {}
    for value in [*known.value_info, *known.input, *known.output]:
        sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(sizes):
            found[value.name] = tuple(sizes)
    return found
