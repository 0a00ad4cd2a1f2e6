"""Graphs that TensorRT takes or refuses, the rules that should refuse them, and where linter and NVIDIA's parser differ."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto

from ..graphs import node, random
from .lint_changes import (
    axis,
    computed,
    from_data,
    in_constant_nodes,
    int8_bias,
    of_shape,
    output_dtype,
    per_channel_activation,
    setting,
    unnamed_bias,
)
from .lint_graphs import (
    FLOAT,
    PAIR,
    S8,
    SHAPES,
    U8,
    eight_bit_float,
    in_branches,
    in_function,
    input_as_output,
    integer,
    layer,
    loop,
    microsoft,
    model,
    narrow,
    one,
    pair,
    residual,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One graph, and the rules that refuse it; none: it is legal."""

    graph: Callable[[], onnx.ModelProto]
    rules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Cases of which TensorRT for RTX says something else than the linter, and why."""

    cases: tuple[str, ...]
    why: str


# how a layer is made -> rules that refuse it; every one is tried on every operator of SHAPES
LAYERS: Mapping[str, tuple[Mapping[str, object], tuple[str, ...]]] = {
    "plain": ({}, ()),
    "per-tensor": ({"axis": None}, ()),
    "float-weights": ({"weight_type": np.float32}, ()),
    "constant-nodes": ({"change": in_constant_nodes}, ()),
    "opset-13": ({"opset": 13}, ()),
    "opset-21": ({"opset": 21}, ()),
    "no-weight-zero-point": ({"weight_zero": None}, ()),
    "zero-point-3": ({"zero": S8(3)}, ("zero-point",)),
    "zero-point-minus-128": ({"zero": S8(-128), "change": in_constant_nodes}, ("zero-point",)),
    "weight-zero-point": ({"weight_zero": -7}, ("zero-point",)),
    "float-weights-zero-point": ({"weight_zero": 3, "weight_type": np.float32}, ("zero-point",)),
    "u8-128": ({"zero": U8(128)}, ("unsigned",)),
    "u8-17": ({"zero": U8(17)}, ("unsigned",)),
    "u8-0": ({"zero": U8(0)}, ("unsigned",)),
    "u8-weights-128": ({"weight_type": U8, "weight_zero": 128}, ("unsigned",)),
    "u8-weights-0": ({"weight_type": U8, "weight_zero": 0}, ("unsigned",)),
    "no-zero-point": ({"zero": None}, ("missing-zero-point",)),
    "int16": ({"zero": np.int16(0), "opset": 21}, ("integer-type",)),
    "uint16": ({"zero": np.uint16(0), "opset": 21}, ("integer-type",)),
    "scale-0": ({"scale": 0.0}, ("scale",)),
    "weight-scale-negative": ({"weight_scale": -0.01}, ("scale",)),
    "five-scales": ({"change": setting(ws=np.full(5, 0.01, np.float32), wz=np.zeros(5, S8))}, ("scale-count",)),
    "four-zero-points": ({"change": setting(wz=np.zeros(4, S8))}, ("zero-point-count",)),
}  # fmt: skip
_IMAGE = (2, 8, 6, 6)
_OTHERS: dict[str, Case] = {
    # what is legal
    "no-bias": Case(graph=partial(layer, bias="none")),
    "depthwise": Case(graph=partial(layer, group=8)),
    "grouped": Case(graph=partial(layer, group=2)),
    "transposed-grouped": Case(graph=partial(layer, "ConvTranspose", group=2)),
    "transposed-depthwise": Case(graph=partial(layer, "ConvTranspose", axis=None, group=8)),
    "residual": Case(graph=residual),
    "int8-bias": Case(graph=partial(layer, change=int8_bias)),
    "max-pool-of-integers": Case(graph=partial(pair, [node("MaxPool", "q", "i", kernel_shape=[2, 2])], _IMAGE, (2, 8, 5, 5))),
    "transpose-of-integers": Case(graph=partial(pair, [node("Transpose", "q", "i", perm=[1, 0])], (2, 8), (8, 2))),
    "concat-of-integers": Case(graph=partial(pair, [node("Concat", "q q", "i", axis=1)], (2, 8), (2, 16))),
    "scalar": Case(graph=partial(pair, (), (), ())),
    "empty": Case(graph=partial(pair, (), (0, 8), (0, 8))),
    "int8-input": Case(graph=lambda: model([node("DequantizeLinear", "x s z", "y")], PAIR, (2, 8), (2, 8), types=(TensorProto.INT8, FLOAT))),
    "int8-output": Case(graph=lambda: model([node("QuantizeLinear", "x s z", "y")], PAIR, (2, 8), (2, 8), types=(FLOAT, TensorProto.INT8))),
    "half": Case(graph=partial(layer, scale_type=np.float16, opset=19)),
    "half-below-opset-19": Case(graph=partial(layer, scale_type=np.float16)),
    "no-zero-point-but-output-int8": Case(graph=partial(layer, zero=None, opset=21, change=output_dtype(TensorProto.INT8))),
    "scale-identity": Case(graph=partial(layer, change=computed("s"))),
    "scale-cast": Case(graph=partial(layer, change=computed("s", "Cast", to=FLOAT))),
    "zero-point-cast": Case(graph=partial(layer, change=computed("z", "Cast", to=TensorProto.INT8))),
    "conv-axis-1": Case(graph=partial(layer, axis=1)),
    "conv-axis-2": Case(graph=partial(layer, axis=2)),
    "conv-axis-minus-4": Case(graph=partial(layer, change=axis(-4))),
    "conv-axis-left-out": Case(graph=partial(layer, change=axis(None))),
    "gemm-axis-1": Case(graph=partial(layer, "Gemm", axis=1)),
    "matmul-axis-0": Case(graph=partial(layer, "MatMul", axis=0)),
    "transposed-axis-1": Case(graph=partial(layer, "ConvTranspose", axis=1)),
    "per-channel-activation": Case(graph=partial(layer, change=per_channel_activation)),
    "int4-weights": Case(graph=partial(narrow, TensorProto.INT4)),
    "int4-blocks": Case(graph=partial(narrow, TensorProto.INT4, 32)),
    "int8-blocks": Case(graph=partial(narrow, TensorProto.INT8, 32)),
    "opset-8": Case(graph=partial(one, "Relu", (2, 8), (2, 8), 8)),
    "opset-9": Case(graph=partial(one, "Relu", (2, 8), (2, 8), 9)),
    "opset-10-per-tensor": Case(graph=partial(layer, axis=None, opset=10)),
    "opset-12-per-channel": Case(graph=partial(layer, opset=12, change=axis(None))),
    "opset-25": Case(graph=partial(layer, opset=25)),
    "opset-26": Case(graph=partial(one, "Relu", (2, 8), (2, 8), 26)),
    "microsoft-gelu": Case(graph=partial(microsoft, "Gelu", "x")),
    "einsum": Case(graph=partial(one, "Einsum", (4, 4), (4, 4), equation="ij->ji")),
    "fp8": Case(graph=partial(eight_bit_float, TensorProto.FLOAT8E4M3FN)),
    "dropout-in-training": Case(graph=lambda: model([node("Dropout", "x r t", "y")], {"r": np.float32(0.5), "t": np.array(True)}, (2, 8), (2, 8))),
    "non-zero": Case(graph=partial(one, "NonZero", (4, 4), (2, "n"), to=TensorProto.INT64)),
    "in-branches": Case(graph=partial(in_branches, S8(0))),
    "in-a-function": Case(graph=partial(in_function, S8(0))),
    "loop": Case(graph=partial(loop, reads="ic")),
    "loop-without-trips": Case(graph=partial(loop, "")),
    "loop-without-condition": Case(graph=partial(loop, go="")),
    # what is not
    "loop-reads-no-iteration": Case(graph=partial(loop, "", reads="i"), rules=("operator-use",)),
    "loop-reads-no-condition": Case(graph=partial(loop, go="", reads="c"), rules=("operator-use",)),
    "loop-without-end": Case(graph=partial(loop, "", ""), rules=("operator-use",)),
    "input-as-output": Case(graph=input_as_output, rules=("input-as-output",)),
    "residual-zero-point": Case(graph=partial(residual, S8(9)), rules=("zero-point",)),
    "residual-u8-0": Case(graph=partial(residual, U8(0)), rules=("unsigned",)),
    "in-branches-zero-point": Case(graph=partial(in_branches, S8(3)), rules=("zero-point",)),
    "in-branches-u8-0": Case(graph=partial(in_branches, U8(0)), rules=("unsigned",)),
    "in-a-function-zero-point": Case(graph=partial(in_function, S8(5)), rules=("zero-point",)),
    "zero-point-cast-3": Case(graph=partial(layer, zero=S8(3), change=computed("z", "Cast", to=TensorProto.INT8)), rules=("zero-point",)),
    "max-pool-zero-point": Case(graph=lambda: pair([node("MaxPool", "q", "i", kernel_shape=[2, 2])], _IMAGE, (2, 8, 5, 5), z=S8(4)), rules=("zero-point",)),
    "uint8-input": Case(graph=lambda: model([node("DequantizeLinear", "x s z", "y")], PAIR | {"z": U8(0)}, (2, 8), (2, 8), types=(TensorProto.UINT8, FLOAT)), rules=("unsigned",)),
    "uint8-output": Case(graph=lambda: model([node("QuantizeLinear", "x s z", "y")], PAIR | {"z": U8(0)}, (2, 8), (2, 8), types=(FLOAT, TensorProto.UINT8)), rules=("unsigned",)),
    "no-zero-point-output-uint8": Case(graph=partial(layer, zero=None, opset=21, change=output_dtype(TensorProto.UINT8)), rules=("missing-zero-point",)),
    "conv-unnamed-bias": Case(graph=partial(layer, bias="none", change=unnamed_bias), rules=("empty-input",)),
    "gemm-unnamed-bias": Case(graph=partial(layer, "Gemm", bias="none", change=unnamed_bias), rules=("empty-input",)),
    "transposed-unnamed-bias": Case(graph=partial(layer, "ConvTranspose", bias="none", change=unnamed_bias)),
    "conv-int32-bias": Case(graph=partial(layer, bias="int32"), rules=("int32-bias",)),
    "gemm-int32-bias": Case(graph=partial(layer, "Gemm", bias="int32"), rules=("int32-bias",)),
    "transposed-int32-bias": Case(graph=partial(layer, "ConvTranspose", bias="int32"), rules=("int32-bias",)),
    "uint4-weights": Case(graph=partial(narrow, TensorProto.UINT4), rules=("integer-type",)),
    "fp8-e5m2": Case(graph=partial(eight_bit_float, TensorProto.FLOAT8E5M2), rules=("integer-type",)),
    "weight-scale-0": Case(graph=partial(layer, weight_scale=0.0), rules=("scale",)),
    "scale-from-data": Case(graph=partial(layer, change=from_data("s")), rules=("dynamic-parameters",)),
    "zero-point-from-data": Case(graph=partial(layer, change=from_data("z")), rules=("dynamic-parameters",)),
    "scale-is-an-input": Case(graph=lambda: model([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")], {"z": S8(0)}, (2, 8), (2, 8), more_inputs={"s": []}), rules=("dynamic-parameters",)),
    "scales-of-four-axes": Case(graph=partial(layer, change=of_shape(8, 1, 1, 1)), rules=("scale-count",)),
    "scale-1x1": Case(graph=lambda: pair(s=np.full((1, 1), 0.1, np.float32), z=np.zeros((1, 1), S8)), rules=("scale-count",)),
    "axis-out-of-range": Case(graph=partial(layer, change=axis(7)), rules=("scale-count",)),
    "one-zero-point-for-all": Case(graph=partial(layer, change=setting(wz=S8(0))), rules=("zero-point-count",)),
    "quantizes-int32": Case(graph=lambda: model([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")], PAIR, (2, 8), (2, 8), types=(TensorProto.INT32, FLOAT)), rules=("tensor-type",)),
    "cast-to-int16": Case(graph=lambda: model([node("Cast", "x", "c", to=TensorProto.INT16), node("Cast", "c", "y", to=FLOAT)], {}, (2, 8), (2, 8)), rules=("tensor-type",)),
    "strings": Case(graph=lambda: model([node("Identity", "x", "y")], {}, (2,), (2,), types=(TensorProto.STRING,) * 2), rules=("tensor-type",)),
    "qlinear-conv": Case(graph=partial(integer, "QLinearConv"), rules=("integer-operator",)),
    "qlinear-matmul": Case(graph=partial(integer, "QLinearMatMul"), rules=("integer-operator",)),
    "conv-integer": Case(graph=partial(integer, "ConvInteger"), rules=("integer-operator",)),
    "matmul-integer": Case(graph=partial(integer, "MatMulInteger"), rules=("integer-operator",)),
    "dynamic-quantize": Case(graph=partial(integer, "DynamicQuantizeLinear"), rules=("dynamic-parameters", "integer-operator", "unsigned")),
    "dynamic-quantize-matmul": Case(graph=partial(microsoft, "DynamicQuantizeMatMul", "x w ws", w=random(8, 8, scale=40).astype(S8), ws=np.float32(0.01)), rules=("integer-operator",)),
    "det": Case(graph=partial(one, "Det", (2, 4, 4), (2,)), rules=("unsupported-operator",)),
    "microsoft-fast-gelu": Case(graph=partial(microsoft, "FastGelu", "x"), rules=("unsupported-operator",)),
    "max-pool-indices": Case(graph=lambda: model([node("MaxPool", "x", "y i", kernel_shape=[2, 2]), node("Cast", "i", "f", to=FLOAT)], {}, _IMAGE, (2, 8, 5, 5)), rules=("operator-use",)),
    "max-pool-dilated": Case(graph=partial(one, "MaxPool", _IMAGE, (2, 8, 4, 4), kernel_shape=[2, 2], dilations=[2, 2]), rules=("operator-use",)),
    "layer-norm-and-its-mean": Case(graph=lambda: model([node("LayerNormalization", "x g", "n m"), node("Add", "n m", "y")], {"g": np.ones(8, np.float32)}, (2, 8), (2, 8)), rules=("operator-use",)),
    "axes-from-data": Case(graph=lambda: model([node("Cast", "a", "axes", to=TensorProto.INT64), node("ReduceSum", "x axes", "y")], {}, (2, 8), (2, 1), more_inputs={"a": [1]}), rules=("operator-use",)),
    "axes-from-a-shape": Case(graph=lambda: model([node("Shape", "x", "h", end=1), node("Sub", "h o", "axes"), node("ReduceSum", "x axes", "y")], {"o": np.array([1])}, (2, 8), (2, 1)), rules=("operator-use",)),
    "opset-6": Case(graph=lambda: model([node("Add", "x x", "y")], {}, (2, 8), (2, 8), opset=6), rules=("opset",)),
}  # fmt: skip
CASES: dict[str, Case] = {
    f"{kind}-{name}": Case(graph=partial(layer, kind, **how), rules=rules)  # type: ignore[arg-type]  # all are its own
    for kind in SHAPES
    for name, (how, rules) in LAYERS.items()
} | _OTHERS

# TensorRT for RTX builds them, and the linter refuses them.
FALSE_REJECTS: tuple[Difference, ...] = (
    Difference(
        cases=(*(f"{kind}-u8-0" for kind in SHAPES), "residual-u8-0", "in-branches-u8-0", "uint8-output"),
        why="the parser takes UINT8 as INT8 and says so in a warning: what is above 127 is clipped, so the engine computes "
        "something else than the file",
    ),
    Difference(
        cases=tuple(f"{kind}-no-zero-point" for kind in SHAPES),
        why="without a zero point ONNX means UINT8 and the parser takes INT8, without a warning: the same clipping",
    ),
    Difference(
        cases=("input-as-output",),
        why="both would have one name, and the parser calls the engine's input `__x`: who feeds `x`, as the file says, "
        "is refused",
    ),
    Difference(
        cases=("scale-is-an-input",),
        why="TensorRT's documentation wants build-time constants; one that is computed from data crashes this builder",
    ),
)
# TensorRT for RTX refuses them, and the linter finds nothing to refuse.
FALSE_ACCEPTS: tuple[Difference, ...] = (
    Difference(cases=("fp8",), why="the GPU decides: FP8 is there from SM89 on, and the tests build for SM86"),
    Difference(
        cases=("dropout-in-training",),
        why="the linter knows operators by name, not by their attributes and optional inputs; no exported model is in training",
    ),
    Difference(
        cases=("non-zero",),
        why="TensorRT has a layer for it and TensorRT for RTX wants a plugin that it does not bring: risky, not refused",
    ),
)
