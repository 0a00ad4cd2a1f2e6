"""`x * (1 + erf(x / sqrt(2))) / 2` of what was an integer before -> Gelu.

ONNX Runtime fuses the five nodes by itself, but gives each reader of a DequantizeLinear one of its own first, and then
does not see that both are `x`.
"""

import math

import onnx
from onnx import version_converter

from ..graph.graph_index import GraphIndex
from ..graph.unread import drop_nodes

_OPSET = 20


def rewrite(model: onnx.ModelProto) -> None:
    """Rewrite a graph in place, if it converts to the opset that has Gelu; names of nodes that stay are kept."""
    if not _written_out_gelus(model):
        return
    try:
        newer = version_converter.convert_version(model, max(_OPSET, _opset(model)))
    except Exception:  # the converter raises RuntimeError and others from C++; slower, the graph is as right as before
        return
    found = _written_out_gelus(newer)
    for node in newer.graph.node:
        if node.output[0] in found:
            node.op_type, node.input[:] = "Gelu", [found[node.output[0]]]
    drop_nodes(newer)
    del newer.metadata_props[:]
    newer.metadata_props.extend(model.metadata_props)
    model.CopyFrom(newer)


def _written_out_gelus(model: onnx.ModelProto) -> dict[str, str]:
    """Result -> what it is the GELU of."""
    graph, found = GraphIndex(model), {}
    for erf in (node for node in graph.nodes if node.op_type == "Erf"):
        x = _multiple(graph, erf.input[0], math.sqrt(0.5))
        maker = graph.producers.get(x) if x else None
        plus = graph.only_reader(erf.output[0])
        if x and maker is not None and maker.op_type == "DequantizeLinear" and plus is not None:
            result = _half_of(graph, x, plus) if _is_one_more(graph, plus) else None
            if result is not None:
                found[result] = x
    return found


def _half_of(graph: GraphIndex, x: str, plus: onnx.NodeProto) -> str | None:
    """Half of `x` times the sum, wherever the half comes in."""
    product = graph.only_reader(plus.output[0])
    if product is None or product.op_type != "Mul":
        return None
    result: str = product.output[0]
    other = next((name for name in product.input if name != plus.output[0]), "")
    if _multiple(graph, other, 0.5) == x:
        return result
    last = graph.only_reader(result)
    if other == x and last is not None and _multiple(graph, last.output[0], 0.5) == result:
        return str(last.output[0])
    return None


def _is_one_more(graph: GraphIndex, node: onnx.NodeProto) -> bool:
    constants = [graph.constant(name) for name in node.input] if node.op_type == "Add" else []
    return any(found is not None and found.ndim <= 1 and found.size == 1 and found.item() == 1.0 for found in constants)


def _multiple(graph: GraphIndex, name: str, factor: float) -> str | None:
    """The tensor that `name` is `factor` times of, as a Mul or a Div by one number makes it."""
    node = graph.producers.get(name)
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    for data, other in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        constant = graph.constant(node.input[other])
        if constant is not None and constant.ndim <= 1 and constant.size == 1:
            by = constant.item() if node.op_type == "Mul" else 1 / (constant.item() or math.inf)
            if math.isclose(by, factor, rel_tol=1e-4):
                return str(node.input[data])
    return None


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
