"""Lookup tables, as embeddings are, in INT8: one scale for each row; rows become floats again as they are looked up."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph.graph_index import GraphIndex, attribute
from ..graph.names import names_read, unused
from ..graph.unread import drop_unread_constants

_LEAST = 4096  # numbers in a table: a smaller one saves nothing worth two more nodes
_LEVELS = 127


def write_tables(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> None:
    """Write tables `(rows, columns)` that only Gathers of rows read, in place, with standard operators.

    A row costs a byte a number and four for its scale. Each number is at most half a 127th of its row's largest away:
    better than what an activation keeps, so that no range has to be found.

    Args:
        model: the graph.
        keep_float: names of nodes that stay in float; a table that one of them reads stays whole.
    """
    graph = GraphIndex(model)
    found = {
        node.input[0]: table
        for node in graph.nodes
        if node.op_type == "Gather"
        and (table := graph.constant(node.input[0])) is not None
        and table.ndim == 2
        and table.size >= _LEAST
        and all(
            reader.op_type == "Gather" and reader.input[0] == node.input[0] and not attribute(reader, "axis", 0)
            and reader.name not in keep_float
            for reader in graph.readers(node.input[0])
        )
    }  # fmt: skip
    if not found:
        return
    taken = names_read(model.graph) | {name for node in graph.nodes for name in [node.name, *node.output]}
    written = {name: _constants(model, name, table, taken) for name, table in found.items()}
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += _looked_up(node, *written[node.input[0]], taken) if _reads(node, written) else [node]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
    drop_unread_constants(model.graph)


def _reads(node: onnx.NodeProto, tables: Collection[str]) -> bool:
    return node.op_type == "Gather" and node.input[0] in tables


def _constants(model: onnx.ModelProto, name: str, table: np.ndarray, taken: set[str]) -> tuple[str, str]:
    """The table's integers, and the scale of each row, `(rows, 1)`; a row of zeros may have any."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = (np.where(largest > 0, largest, 1.0) / _LEVELS).astype(np.float32)
    integers = np.clip(np.rint(table / scale), -_LEVELS, _LEVELS).astype(np.int8)
    first, second = unused(f"{name}_quantized", taken), unused(f"{name}_scale", taken)
    model.graph.initializer.extend([numpy_helper.from_array(integers, first), numpy_helper.from_array(scale, second)])
    return first, second


def _looked_up(node: onnx.NodeProto, integers: str, scale: str, taken: set[str]) -> list[onnx.NodeProto]:
    rows, output = node.input[1], node.output[0]
    whole, cast, factor = (unused(f"{output}_{part}", taken) for part in ("integers", "cast", "factor"))
    return [
        helper.make_node("Gather", [integers, rows], [whole], name=node.name, axis=0),
        helper.make_node("Cast", [whole], [cast], name=unused(f"{node.name}_cast", taken), to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [scale, rows], [factor], name=unused(f"{node.name}_factor", taken), axis=0),
        helper.make_node("Mul", [cast, factor], [output], name=unused(f"{node.name}_scaled", taken)),
    ]
