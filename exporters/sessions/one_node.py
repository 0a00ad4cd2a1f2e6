"""A single node of a graph, run on its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from ...core.errors import QuantizationError
from ..graph.names import reads
from .ort_session import provider

Constants = Mapping[str, onnx.TensorProto]


class OneNode:
    """Runs one node of `model` in ONNX Runtime; what it is fed decides the types of its inputs.

    Args:
        model: where the node stands: its operator sets and functions.
        constants: initializers by name.
        example: what it will be fed, by name.
        remedy: what to do about it, the end of the message.

    Raises:
        QuantizationError: ONNX Runtime cannot run it on its own.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        model: onnx.ModelProto,
        constants: Constants,
        example: Mapping[str, np.ndarray],
        device: str,
        remedy: str = "",
    ) -> None:
        self._node, self._remedy = node, remedy
        self.outputs: Sequence[str] = [name for name in node.output if name]
        self.inputs: Sequence[str] = [name for name in reads(node) if name in example]
        graph = helper.make_graph(
            [node],
            "one_node",
            [_described(name, example[name]) for name in self.inputs],
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            [constants[name] for name in reads(node) if name in constants],
        )
        made = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
        made.ir_version = model.ir_version
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                made.SerializeToString(), options, providers=[provider(device)]
            )
        except Exception as error:  # its exceptions share no base class
            raise self._refused(str(error).splitlines()[0]) from error

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The node's outputs, in its order.

        Raises:
            QuantizationError: it fails, or gives something else than tensors.
        """
        try:
            values = self._session.run(list(self.outputs), {name: feed[name] for name in self.inputs})
        except Exception as error:  # its exceptions share no base class
            raise self._refused(str(error).splitlines()[0]) from error
        if not all(isinstance(value, np.ndarray) for value in values):
            raise self._refused("it gives a sequence")
        return list(values)

    def _refused(self, cause: str) -> QuantizationError:
        return QuantizationError(
            f"node '{self._node.name}' ({self._node.op_type}) cannot be run by itself: {cause}{self._remedy}"
        )


def alone(
    node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray | None
) -> tuple[onnx.NodeProto, dict[str, onnx.TensorProto]]:
    """A weighted node with another weight and bias, and these; it reads `data`."""
    single = onnx.NodeProto()
    single.CopyFrom(node)
    del single.input[:]
    arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
    single.input.extend(["data", *arrays])
    return single, {name: numpy_helper.from_array(array, name) for name, array in arrays.items()}


def _described(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
