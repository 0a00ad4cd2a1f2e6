"""A copy of a model that is being changed: constants added, nodes removed, and what nobody reads any more left out."""

import numpy as np
import onnx
from onnx import numpy_helper

from .graph_view import GraphView, views, without_calls
from .names import names_read, unused
from .opset import check_functions


class GraphEditor:
    """Nodes of `view` are those of `model`: changing one changes the model.

    Args:
        model: not changed; the copy has no local functions any more, calls are replaced by what they do.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        check_functions(model)
        self.model = without_calls(model)
        self.view: GraphView = next(views(self.model))
        self._taken = names_read(self.model.graph) | set(self.view.producers) | set(self.view.constants)
        self._removed: set[str] = set()
        self._added: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an initializer, once for each name and value; returns the name it got."""
        key = (name, values.dtype.name, values.shape, values.tobytes())
        if key not in self._added:
            self._added[key] = unused(name, self._taken)
            self._add(self._added[key], values)
        return self._added[key]

    def replace(self, node: onnx.NodeProto, values: np.ndarray) -> None:
        """Put a constant in the place of a node: it has the name of the node's output."""
        self._removed.add(node.output[0])
        self._add(node.output[0], values)

    def finished(self) -> onnx.ModelProto:
        """The model without what nobody reads any more, and without notes about types that have changed."""
        graph = self.model.graph
        kept = [node for node in graph.node if not (node.output and node.output[0] in self._removed)]
        _set(graph.node, kept)
        used = names_read(graph)
        _set(graph.node, [node for node in graph.node if node.op_type != "Constant" or node.output[0] in used])
        unread = {tensor.name for tensor in graph.initializer} - used
        _set(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in unread])
        _set(graph.input, [value for value in graph.input if value.name not in unread])  # old files list constants too
        del graph.value_info[:]
        return self.model

    def _add(self, name: str, values: np.ndarray) -> None:
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _set(field, kept) -> None:  # type: ignore[no-untyped-def]  # protobuf's containers have no common type
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del field[:]
    field.extend(copies)
