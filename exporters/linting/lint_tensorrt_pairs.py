"""TensorRT's rules for single Q/DQ nodes: their integers, zero points and scales; `lint_tensorrt` lists them."""

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper

from ..graph.graph_view import GraphView
from ..int8.integer_region import can_be_recentred, folds, is_centred, region_of
from .lint import Finding, at

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_INTEGERS = (
    TensorProto.INT4,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)
_NARROW = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E8M0, TensorProto.FLOAT4E2M1)
TAKEN = (TensorProto.UNDEFINED, TensorProto.DOUBLE, *FLOATS, *_INTEGERS, *_NARROW)
_SYMMETRIC = "calibrate it symmetrically, as INT8"


def zero_point(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        zero = view.constant(node, 2)
        if zero is None or view.integer_type(node) != TensorProto.INT8 or not zero.any():
            continue
        fixable = can_be_recentred(view, region_of(view, node))
        remedy = "less its zero point it fits into INT8, --fix writes that" if fixable else _SYMMETRIC
        value = int(zero.reshape(-1)[np.flatnonzero(zero)[0]])
        yield at(node, "zero-point", f"zero point {value}; it must be 0", remedy, fixable=fixable)


def unsigned(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        if view.integer_type(node) != TensorProto.UINT8 or not view.input(node, 2):
            continue
        zero, region = view.constant(node, 2), region_of(view, node)
        from_zero = zero is not None and not zero.any()
        fixable = is_centred(view, region) or can_be_recentred(view, region)
        remedy = _SYMMETRIC
        if fixable:
            remedy = "INT8 with zero point 0 holds the same numbers, as --fix writes"
        elif from_zero:
            remedy = f"{_SYMMETRIC}: at twice the scale it would lose a bit"
        problem = f"works on UINT8 with {_values(zero)}"
        if from_zero and node.op_type == "QuantizeLinear":
            problem += ": builds with a warning, and clips at 127"
        yield at(node, "unsigned", problem, remedy, fixable=fixable)


def _values(zero: np.ndarray | None) -> str:
    if zero is None:
        return "a computed zero point"
    found = sorted({int(value) for value in zero.reshape(-1)})
    return f"zero point {found[0]}" if len(found) == 1 else f"zero points {found[0]} to {found[-1]}"


def missing_zero_point(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        kind = view.integer_type(node)
        if view.input(node, 2):
            continue
        if kind == TensorProto.UINT8:
            problem = "no zero point, which means UINT8; taken as INT8 in silence: clips at 127"
            yield at(node, "missing-zero-point", problem, f"{_SYMMETRIC}, and write its zero point of 0")
        elif kind == TensorProto.INT8 and view.constant(node, 1) is not None:
            problem = "no zero point, which TensorRT 8 refuses"
            yield at(node, "missing-zero-point", problem, "write 0, as --fix does", "risky", fixable=view.main)


def integer_type(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        kind = view.integer_type(node)
        if kind not in (*TAKEN, TensorProto.INT32):
            yield at(node, "integer-type", f"works on {name_of(kind)}", _SYMMETRIC)


def int32_bias(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        if node.op_type == "DequantizeLinear" and view.integer_type(node) == TensorProto.INT32:
            fixable = folds(view, node)
            remedy = "keep the bias in float" + (", as --fix does" if fixable else "")
            yield at(node, "int32-bias", "works on an INT32 bias", remedy, fixable=fixable)


def dynamic(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        for index, name in ((1, "scale"), (2, "zero point")):
            if view.input(node, index) and view.constant(node, index) is None:
                remedy = "fold the constants; ranges that depend on the input are not to be had: calibrate it"
                yield at(node, "dynamic-parameters", f"its {name} is not a constant", remedy)


def scale(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        scale = view.constant(node, 1)
        if scale is not None and not bool((scale.astype(np.float64) > 0).all()):
            worst = float(scale.astype(np.float64).min())
            remedy = "a channel of zeros may have any positive scale"
            yield at(node, "scale", f"scale {worst:g}; it must be positive", remedy)


def activation_granularity(view: GraphView) -> Iterator[Finding]:
    for node in view.quantizers():
        scale = view.constant(node, 1)
        if (
            node.op_type == "QuantizeLinear"
            and scale is not None
            and scale.size > 1
            and node.input[0] not in view.constants
        ):
            problem = "one scale for each channel of an activation, which a product cannot be scaled back by"
            remedy = "one scale for the tensor; differences between channels belong in the weights"
            yield at(node, "activation-granularity", problem, remedy, "risky")


def name_of(kind: int) -> str:
    return helper.tensor_dtype_to_string(kind).removeprefix("TensorProto.")
