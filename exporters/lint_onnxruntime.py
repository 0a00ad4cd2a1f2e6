"""What ONNX Runtime does not load, and what its CPU provider runs slowly: rules as pure functions.

Loading itself is tried by `OnnxRuntimeCpu.lint`; the rules say why a file will not load, and with what remedy. What is
slow was measured, see docs/guide.md.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from .graph_view import GraphView
from .integer_region import can_be_shifted, region_of, starts_at_zero
from .lint import Finding, Rule, at
from .lint_onnx import DOCUMENT, per_channel_opset, scale_count, scale_type, zero_point_count

SAFE_WEIGHT = 64  # 2 * 255 * 64 = 32,640; VPMADDUBSW adds two products in 16 bits, up to 32,767
_MEASURED = "ONNX Runtime's optimised graphs on x86-64, measured"


def _signed(view: GraphView) -> Iterator[Finding]:
    """A convolution or product of signed activations has no fast kernel on x86."""
    for node in view.quantizers():
        if node.op_type != "QuantizeLinear" or view.integer_type(node) != TensorProto.INT8:
            continue
        if node.input[0] in view.constants:
            continue
        fixable = can_be_shifted(view, region_of(view, node), TensorProto.INT8)
        remedy = "as UINT8, 128 more, they are the same numbers" + (", --fix writes that" if fixable else "")
        yield at(node, "signed-activations", "signed activations are slow on x86", remedy, "slow", fixable)


def _pair_before_relu(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        if node.op_type != "QuantizeLinear" or view.producer(node.input[0], "Conv", "Gemm", "MatMul", "Add") is None:
            continue
        ends = [reader for reader in view.readers.get(node.output[0], ()) if reader.op_type == "DequantizeLinear"]
        behind = [other for end in ends for other in view.readers.get(end.output[0], ())]
        if behind and all(other.op_type == "Relu" for other in behind):
            problem = "a pair between a node and its Relu keeps the two from being fused"
            yield at(node, "pair-before-relu", problem, "quantize what the Relu gives instead", "slow")


def _zero_point_after_relu(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        if node.op_type != "QuantizeLinear" or view.producer(node.input[0], "Relu") is None:
            continue
        zero = view.constant(node, 2)
        if view.integer_type(node) != TensorProto.UINT8 or zero is None or not bool(np.all(zero == 128)):
            continue
        fixable = starts_at_zero(view, region_of(view, node))
        remedy = "with zero point 0 the Relu is dropped" + (", --fix writes it" if fixable else "")
        problem = "zero point 128 behind a Relu, which is then run by itself"
        yield at(node, "zero-point-after-relu", problem, remedy, "slow", fixable)


def _saturating(view: GraphView) -> Iterator[Finding]:
    """Two products of 255 and a weight past 64 do not fit into 16 bits, where they are added without VNNI."""
    for node in view.nodes:
        weights, unsigned = _factors(view, node)
        if weights is None or weights.dtype != np.int8 or not weights.size:
            continue
        largest = int(np.abs(weights.astype(np.int16)).max())
        if largest > SAFE_WEIGHT and unsigned:
            problem = f"weights up to {largest} times unsigned activations saturate on this CPU, which has no VNNI"
            yield at(node, "saturating-weights", problem, "write weights in 7 bits: quantize it here", "risky")


def _factors(view: GraphView, node: onnx.NodeProto) -> tuple[np.ndarray | None, bool]:
    """The constant integers that a node multiplies by, and whether its other factor is unsigned."""
    if node.op_type == "MatMulInteger":
        return view.constant(node, 1), view.types.get(node.input[0]) == TensorProto.UINT8
    end = view.producer(view.input(node, 1), "DequantizeLinear")
    begin = view.producer(view.input(node, 0), "DequantizeLinear")
    if end is None or begin is None:
        return None, False
    return view.constant(end, 0), view.integer_type(begin) == TensorProto.UINT8


RULES: dict[str, Rule] = {
    "opset": Rule(check=per_channel_opset, document=DOCUMENT),
    "scale-type": Rule(check=scale_type, document=DOCUMENT),
    "scale-count": Rule(check=scale_count, document=DOCUMENT),
    "zero-point-count": Rule(check=zero_point_count, document=DOCUMENT),
    "pair-before-relu": Rule(check=_pair_before_relu, document=_MEASURED),
    "zero-point-after-relu": Rule(check=_zero_point_after_relu, document=_MEASURED),
}
VNNI_RULES: dict[str, Rule] = {**RULES, "signed-activations": Rule(check=_signed, document=_MEASURED)}
# Unsigned activations are no remedy there, so nothing is said of signed ones.
SATURATING_RULES: dict[str, Rule] = {
    **RULES,
    "saturating-weights": Rule(check=_saturating, document="Intel's instruction set reference, VPMADDUBSW"),
}
