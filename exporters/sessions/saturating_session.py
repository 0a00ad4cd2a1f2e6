"""An ONNX file as ONNX Runtime runs it on an x86 CPU without VNNI, emulated on any other: the same integers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ...core.errors import ArtifactError, MeasurementError
from ...core.feeds import check_feed
from ...core.values import Arrays, TensorSpec
from ..graph.names import reads
from ..graph.onnx_file import subgraphs
from ..int8 import saturation
from ..int8.integer_node import IntegerNode, attributes, roles
from . import ort_kernels
from .one_node import OneNode
from .ort_session import OnnxRuntimeSession


class SaturatingSession:
    """One loaded file; see `core.values.Session`.

    The nodes of ONNX Runtime's optimised graph run one by one; those that can saturate in numpy, and so slower.

    Args:
        path: ONNX file.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
        MeasurementError: weights that can saturate in an operator that is not emulated; names the node.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        whole = OnnxRuntimeSession(path)
        self._inputs, self._outputs = whole.inputs, whole.outputs
        whole.close()
        self._model = ort_kernels.optimised(Path(path))
        self._constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._arrays = {name: numpy_helper.to_array(tensor) for name, tensor in self._constants.items()}
        nodes = self._model.graph.node
        found = {index: _integer_node(node, self._arrays) for index, node in enumerate(nodes)}
        self._integer = {index: node for index, node in found.items() if node is not None}
        self._last = {name: index for index, node in enumerate(nodes) for name in reads(node)}
        self._runners: dict[int, OneNode] = {}
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def emulated(self) -> tuple[str, ...]:
        """Names of the nodes of the optimised graph that can saturate."""
        return tuple(self._model.graph.node[index].name for index in self._integer)

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """See `core.values.Session`; raises what `OnnxRuntimeSession.run` raises."""
        if self._closed:
            raise ArtifactError(f"{self._path}: the session is closed")
        check_feed(self._path, self.inputs, feed)
        kept = {spec.name for spec in self.outputs}
        values = {**self._arrays, **{spec.name: feed[spec.name] for spec in self.inputs}}
        for index, node in enumerate(self._model.graph.node):
            results = [self._integer[index].run(values)] if index in self._integer else self._plain(index, node, values)
            values |= zip([name for name in node.output if name], results, strict=True)
            for name in reads(node):
                if self._last[name] == index and name not in kept and name not in self._arrays:
                    values.pop(name, None)
        return {spec.name: values[spec.name] for spec in self.outputs}

    def close(self) -> None:
        self._runners.clear()
        self._closed = True

    def _plain(self, index: int, node: onnx.NodeProto, values: Arrays) -> list[np.ndarray]:
        if index not in self._runners:
            fed = {name: value for name, value in values.items() if name not in self._arrays}
            self._runners[index] = OneNode(node, self._model, self._constants, fed, "cpu")
        return self._runners[index].run(values)


def _integer_node(node: onnx.NodeProto, arrays: Arrays) -> IntegerNode | None:
    """The node, if it has weights that can saturate.

    Raises:
        MeasurementError: it may have, and is none of those that are emulated.
    """
    for graph in subgraphs(node):
        inner = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        if any(_integer_node(other, {**arrays, **inner}) is not None for other in graph.node):
            raise _not_emulated(node)
    if not node.op_type.startswith(ort_kernels.INT8):
        return None
    named = roles(node)
    constant = {role: arrays[name] for role, name in named.items() if name in arrays}
    if any(role in constant and constant[role].dtype != kind for role, kind in _SATURATING.items()):
        return None
    if "weight" in constant and not attributes(node).get("transA"):
        found = IntegerNode(node, constant["weight"])
        return found if found.can_saturate else None
    weights = [arrays[name] for name in node.input if name in arrays]
    if named or any(weight.dtype == np.int8 and weight.ndim > 1 and _may(weight) for weight in weights):
        raise _not_emulated(node)
    return None


_SATURATING = {"data_zero": np.uint8, "weight_zero": np.int8, "weight": np.int8}


def _may(weight: np.ndarray) -> bool:
    return bool(saturation.can_saturate(weight.reshape(-1, weight.shape[-1])).any())


def _not_emulated(node: onnx.NodeProto) -> MeasurementError:
    return MeasurementError(
        f"{node.op_type} '{node.name}': how it saturates on a CPU without VNNI is not emulated; keep it in float"
    )
