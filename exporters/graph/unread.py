"""Leave out of a graph what nobody reads any more."""

from collections.abc import Collection

import onnx
from onnx import helper

from .names import names_read


def drop_unread_constants(graph: onnx.GraphProto) -> None:
    """Remove, in place, the initializers that no node reads."""
    used = names_read(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def drop_nodes(model: onnx.ModelProto, done: Collection[str] = ()) -> None:
    """Remove, in place, the nodes of these names, those that nobody reads any more, and the constants of both."""
    nodes = [node for node in model.graph.node if node.name not in done]
    while True:
        graph = helper.make_graph(nodes, "", [], model.graph.output)
        read = names_read(graph)
        kept = [node for node in nodes if read.intersection(node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
    drop_unread_constants(model.graph)
