"""What ONNX Runtime does not load, and what its CPU provider runs slowly: rules as pure functions.

Loading itself is tried by `OnnxRuntimeCpu.lint`; the rules say why a file will not load, and with what remedy. What is
slow was measured, see docs/guide.md.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto

from ..graph.graph_view import GraphView, attribute
from ..int8 import saturation
from ..int8.integer_region import can_be_shifted, region_of, starts_at_zero
from .lint import Finding, Rule, at
from .lint_onnx import DOCUMENT, per_channel_opset, scale_count, scale_type, zero_point_count

_UNSIGNED: Mapping[int, int] = {TensorProto.UINT8: 0}
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


def _zero_point_after_relu(view: GraphView, lowest: Mapping[int, int] = _UNSIGNED) -> Iterator[Finding]:
    """Behind a Relu the lowest integer has to stand for zero, else the Relu stays, a kernel of its own.

    Args:
        lowest: integer types that it is said of -> the lowest integer of each.
    """
    for node in view.quantizers():
        if node.op_type != "QuantizeLinear" or view.producer(node.input[0], "Relu") is None:
            continue
        zero, wanted = view.constant(node, 2), lowest.get(view.integer_type(node))
        if wanted is None or zero is None or not bool(np.all(zero == wanted + 128)):
            continue
        fixable = wanted == 0 and starts_at_zero(view, region_of(view, node))
        remedy = f"with zero point {wanted} the Relu is dropped" + (", --fix writes it" if fixable else "")
        problem = f"zero point {wanted + 128} behind a Relu, which is then run by itself"
        yield at(node, "zero-point-after-relu", problem, remedy, "slow", fixable)


def _saturating(view: GraphView) -> Iterator[Finding]:
    """Pairs of weights whose products with unsigned activations do not fit into 16 bits."""
    for node in view.nodes:
        weight, unsigned = _factors(view, node)
        if weight is None or not unsigned or weight.dtype != np.int8 or weight.ndim < 2:
            continue
        pairs = [saturation.can_saturate(matrix) for matrix in _matrices(node, weight)]
        count = sum(int(found.sum()) for found in pairs)
        if count:
            of = sum(found.size for found in pairs)
            problem = (
                f"{count} of {of} pairs of its weights can saturate: their products are added in 16 bits without VNNI"
            )
            yield at(
                node, "saturating-weights", problem, "write weights in 7 bits: quantize it for this target", "risky"
            )


def _factors(view: GraphView, node: onnx.NodeProto) -> tuple[np.ndarray | None, bool]:
    """The constant integers that a node multiplies by, and whether its other factor is unsigned."""
    if node.op_type == "MatMulInteger":
        return view.constant(node, 1), view.types.get(node.input[0]) == TensorProto.UINT8
    end = view.producer(view.input(node, 1), "DequantizeLinear")
    begin = view.producer(view.input(node, 0), "DequantizeLinear")
    if end is None or begin is None:
        return None, False
    return view.constant(end, 0), view.integer_type(begin) == TensorProto.UINT8


def _matrices(node: onnx.NodeProto, weight: np.ndarray) -> list[np.ndarray]:
    """A weight as the kernels multiply by it; none where they do not add in 16 bits."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        if groups < 1 or weight.shape[0] % groups:
            return []  # no convolution at all: ONNX's checker says so
        return [] if saturation.is_depthwise(weight, groups) else saturation.as_matrices(weight, groups)
    if node.op_type in ("Gemm", "MatMul", "MatMulInteger"):
        return [weight.T if attribute(node, "transB", 0) else weight.reshape(-1, weight.shape[-1])]
    return []


LOADING_RULES: dict[str, Rule] = {
    "opset": Rule(check=per_channel_opset, document=DOCUMENT),
    "scale-type": Rule(check=scale_type, document=DOCUMENT),
    "scale-count": Rule(check=scale_count, document=DOCUMENT),
    "zero-point-count": Rule(check=zero_point_count, document=DOCUMENT),
}
RULES: dict[str, Rule] = {
    **LOADING_RULES,
    "pair-before-relu": Rule(check=_pair_before_relu, document=_MEASURED),
    "zero-point-after-relu": Rule(check=_zero_point_after_relu, document=_MEASURED),
}
VNNI_RULES: dict[str, Rule] = {**RULES, "signed-activations": Rule(check=_signed, document=_MEASURED)}
# Unsigned activations are no remedy there, so nothing is said of signed ones.
SATURATING_RULES: dict[str, Rule] = {
    **RULES,
    "saturating-weights": Rule(check=_saturating, document="Intel's instruction set reference, VPMADDUBSW"),
}
# Signed activations are fused there as unsigned ones are.
ARM_RULES: dict[str, Rule] = {
    **RULES,
    "zero-point-after-relu": Rule(
        check=partial(_zero_point_after_relu, lowest={**_UNSIGNED, TensorProto.INT8: -128}),
        document="ONNX Runtime's optimised graphs on aarch64, read under an emulator",
    ),
}
