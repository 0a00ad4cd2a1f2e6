"""Which names a graph and a node read, those inside their branches too, and names that are free."""

import onnx

from .onnx_file import subgraphs


def names_read(graph: onnx.GraphProto) -> set[str]:
    """Every name that the nodes and outputs of a graph read, those of graphs inside it too."""
    found = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        for inner in subgraphs(node):
            found |= names_read(inner)
    return found


def reads(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those that graphs inside it take from outside too; these may name inner tensors as well."""
    inner = [name for graph in subgraphs(node) for name in sorted(names_read(graph))]
    return [name for name in dict.fromkeys([*node.input, *inner]) if name]


def unused(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, ... where that is taken; it is taken then."""
    found = name
    number = 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found
