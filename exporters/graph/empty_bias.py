"""A bias that is not there, written as a third input without a name: to ONNX the same as none, not to TensorRT."""

from collections.abc import Iterable

import onnx

_WITH_BIAS = ("Conv", "Gemm")  # of ConvTranspose TensorRT's parser takes it for none


def has_empty_bias(node: onnx.NodeProto) -> bool:
    """Whether TensorRT's parser would look for a bias without a name."""
    return node.op_type in _WITH_BIAS and len(node.input) > 2 and not node.input[2]


def leave_out_empty_bias(nodes: Iterable[onnx.NodeProto]) -> int:
    """Leave it out, in place. Returns how many were left out.

    Other operators keep what they have: a Loop without state needs both its inputs, whether they have names or not.
    """
    found = [node for node in nodes if has_empty_bias(node)]
    for node in found:
        del node.input[2:]
    return len(found)
