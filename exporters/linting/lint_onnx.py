"""Rules that ONNX itself sets for Q/DQ pairs, whoever reads the file."""

import math
from collections.abc import Iterator

from onnx import TensorProto

from ..graph.graph_view import GraphView, attribute
from ..graph.half import QDQ_OPSET
from .lint import Finding, Severity, at

PER_CHANNEL_OPSET = 13
DOCUMENT = "ONNX operator reference, QuantizeLinear and DequantizeLinear"
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_RAISE = "raise the opset, as --fix does"


def per_channel_opset(view: GraphView, severity: Severity = "refused") -> Iterator[Finding]:
    """One scale for each channel needs opset 13."""
    for node in view.quantizers():
        scale = view.constant(node, 1)
        if view.opset < PER_CHANNEL_OPSET and scale is not None and scale.size > 1:
            problem = f"one scale for each channel in opset {view.opset}, which needs {PER_CHANNEL_OPSET}"
            yield at(node, "opset", problem, _RAISE, severity, fixable=True)


def scale_type(view: GraphView, severity: Severity = "refused") -> Iterator[Finding]:
    """Scales in 16 bits need opset 19."""
    for node in view.quantizers():
        if view.opset < QDQ_OPSET and view.types.get(view.input(node, 1)) in _HALVES:
            problem = f"a 16-bit scale in opset {view.opset}, which needs {QDQ_OPSET}"
            yield at(node, "scale-type", problem, _RAISE, severity, fixable=True)


def zero_point_count(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        scale, zero = view.constant(node, 1), view.constant(node, 2)
        if scale is None or zero is None or scale.size == zero.size:
            continue
        fixable = view.main and view.integer_type(node) == TensorProto.INT8 and not zero.any()
        remedy = "write as many" + (", as --fix does" if fixable else "")
        yield at(
            node, "zero-point-count", f"{zero.size} zero point(s) for {scale.size} scale(s)", remedy, fixable=fixable
        )


def scale_count(view: GraphView) -> Iterator[Finding]:
    """As many scales as values along their axis; or, for blocks of one axis, as many as there are blocks."""
    remedy = "write one for the tensor, or one for each output channel"
    for node in view.quantizers():
        scale, shape = view.constant(node, 1), view.shapes.get(node.input[0])
        if scale is None or shape is None or (scale.size == 1 and scale.ndim < 2):
            continue
        axis = attribute(node, "axis", 1)
        if scale.ndim == 1:
            length = shape[axis] if -len(shape) <= axis < len(shape) else 0
            if length not in (scale.size, "?"):
                problem = f"{scale.size} scales along axis {axis}, which has {length} values"
                yield at(node, "scale-count", problem, remedy)
        elif scale.ndim != len(shape) or not _blocks(scale.shape, shape):
            problem = f"scales of shape {_x(scale.shape)} for a tensor of shape {_x(shape)}"
            yield at(node, "scale-count", problem, remedy)


def _blocks(scale: tuple[int, ...], shape: tuple[int | str, ...]) -> bool:
    """Whether blocks lie along one axis, one of the last two."""
    blocked = [axis for axis, (many, of) in enumerate(zip(scale, shape, strict=True)) if of not in (many, "?")]
    return len(blocked) <= 1 and all(axis >= len(shape) - 2 for axis in blocked) and math.prod(scale) > 1


def _x(shape: tuple[int | str, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
