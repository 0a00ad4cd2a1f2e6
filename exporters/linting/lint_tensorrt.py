"""What TensorRT refuses in an ONNX file, and what it takes but computes wrongly or slowly: rules as pure functions.

Sources: NVIDIA's TensorRT documentation, the source and the tables of its ONNX parser, and its issue tracker; each rule
names its own. Its parser and builder say what is true: tests/exporters/test_lint_truth.py holds the rules against them.
"""

from collections.abc import Iterator
from functools import partial

import onnx
from onnx import TensorProto

from ..graph.empty_bias import has_empty_bias
from ..graph.graph_view import GraphView, attribute
from ..graph.names import reads
from ..graph.onnx_file import subgraphs
from . import lint_onnx, lint_tensorrt_pairs as pairs
from .lint import Finding, Rule, at
from .lint_tensorrt_pairs import FLOATS, TAKEN, name_of
from .tensorrt_operators import (
    BUILD_TIME_INPUTS,
    FOREIGN,
    INTEGER,
    ONE_OUTPUT,
    PLUGINS,
    QUANTIZED_FOREIGN,
    UNDILATED,
    UNSUPPORTED,
)

OLDEST_OPSET, NEWEST_OPSET = 9, 25
_OLDEST_PARSED = 7  # its parser knows no older rules of broadcasting
_BROADCASTING = ("Add", "Div", "Gemm", "Mul", "Pow", "PRelu", "Sub")
_LOOP_INPUTS = (  # what the body gets where the Loop is given it, and the remedy where it is not
    ("the number of the iteration", "give it a trip count: the largest INT64, where the condition alone ends it"),
    ("a condition", "give it True, and let the body pass it on, where the trip count alone ends it"),
)
_QUANTIZED = "TensorRT documentation, Explicit Quantization"
_LAYER = "TensorRT API, IQuantizeLayer and IDequantizeLayer"


def _tensor_type(view: GraphView) -> Iterator[Finding]:
    """Element types that TensorRT does not have, wherever they are."""
    remedy = "cast it to a type that it has, INT32 or a float"
    for name in sorted(view.inputs if view.main else ()):
        if view.types.get(name, 0) not in TAKEN:
            problem = f"input '{name}' is {name_of(view.types[name])}"
            yield Finding(rule="tensor-type", problem=problem, remedy=remedy)
    for node in view.nodes:
        quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for kind in {view.types.get(name, 0) for name in (() if quantizer else node.output)} - {*TAKEN}:
            yield at(node, "tensor-type", f"gives {name_of(kind)}", remedy)
    for node in view.quantizers():
        kind = view.types.get(node.input[0], 0)
        if node.op_type == "QuantizeLinear" and kind not in (*FLOATS, TensorProto.UNDEFINED):
            yield at(node, "tensor-type", f"quantizes {name_of(kind)}", "cast it to a float")


def _weight_axis(view: GraphView) -> Iterator[Finding]:
    remedy = "one scale for the weights, or one for each value along that axis"
    for node in view.nodes:
        end = view.producer(view.input(node, 1), "DequantizeLinear")
        if end is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        scale, rank = view.constant(end, 1), len(view.shapes.get(end.input[0], ()))
        if scale is None or scale.size == 1 or scale.ndim != 1 or rank < 2:
            continue
        axis, wanted = attribute(end, "axis", 1) % rank, _output_axis(node, rank)
        if axis != wanted:
            problem = f"scales of its weights along axis {axis}; INT8 kernels want them along axis {wanted}"
            yield at(node, "weight-axis", problem, remedy, "risky")


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    """Of a transposed convolution it is the input channels (NVIDIA/TensorRT#2380)."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else rank - 1


def _grouped_transposed(view: GraphView) -> Iterator[Finding]:
    for node in view.nodes:
        if node.op_type == "ConvTranspose" and _int8_groups(view, node) > 1:
            problem = "a transposed convolution of INT8 weights in groups, which TensorRT before 10.9 cannot build"
            yield at(node, "grouped-transposed", problem, "keep its weights in float, or use one group", "risky")


def _grouped_convolution(view: GraphView) -> Iterator[Finding]:
    for node in view.nodes:
        depthwise = view.shapes.get(view.input(node, 1), (0, 0))[1:2] == (1,)
        if node.op_type == "Conv" and _int8_groups(view, node) > 1 and not depthwise:
            problem = "a convolution of INT8 weights in groups, which TensorRT splits: reported slower than FP16"
            yield at(node, "grouped-convolution", problem, "keep its weights in float", "slow")


def _int8_groups(view: GraphView, node: onnx.NodeProto) -> int:
    """Groups of a node with quantized weights; 0: they are not."""
    return attribute(node, "group", 1) if view.producer(view.input(node, 1), "DequantizeLinear") is not None else 0


def _opset(view: GraphView) -> Iterator[Finding]:
    yield from lint_onnx.per_channel_opset(view, "risky")
    if view.main and not OLDEST_OPSET <= view.opset <= NEWEST_OPSET:
        old = view.opset < OLDEST_OPSET
        problem = f"opset {view.opset}; TensorRT documents {OLDEST_OPSET} to {NEWEST_OPSET}"
        remedy = "raise it, as --fix does" if old else f"export it with opset {NEWEST_OPSET} or below"
        refused = view.opset < _OLDEST_PARSED and any(node.op_type in _BROADCASTING for node in view.nodes)
        yield Finding(
            rule="opset", problem=problem, remedy=remedy, severity="refused" if refused else "risky", fixable=old
        )


def _integer_operator(view: GraphView) -> Iterator[Finding]:
    for node in view.nodes:
        if node.op_type in (*INTEGER, *QUANTIZED_FOREIGN):
            remedy = "quantize the float original again, with Q/DQ pairs"
            yield at(node, "integer-operator", "an integer operator, which TensorRT has none of", remedy)


def _unsupported_operator(view: GraphView) -> Iterator[Finding]:
    for node in view.nodes:
        kind = node.op_type
        if kind in PLUGINS or kind.endswith("_TRT"):
            remedy = "load the plugin, or express it with other operators"
            yield at(node, "unsupported-operator", "needs a plugin; TensorRT for RTX has none", remedy, "risky")
        elif kind in UNSUPPORTED or not (onnx.defs.has(kind) or kind in (*FOREIGN, *QUANTIZED_FOREIGN)):
            problem = "TensorRT has no such operator" + (f" ({node.domain})" if node.domain else "")
            remedy = "express it with other operators, or write a plugin of that name"
            yield at(node, "unsupported-operator", problem, remedy)


def _operator_use(view: GraphView) -> Iterator[Finding]:
    """Operators that TensorRT has, in a form that it has not."""
    for node in view.nodes:
        index = BUILD_TIME_INPUTS.get(node.op_type, -1)
        if index >= 0 and view.input(node, index) and view.constant(node, index) is None:
            problem = f"its input {index} is not a constant; TensorRT must know it when it builds"
            yield at(node, "operator-use", problem, "fold the constants, or give it a fixed value")
        if node.op_type in ONE_OUTPUT and any(node.output[1:]):
            yield at(node, "operator-use", "TensorRT gives its first output only", "leave out the others")
        dilations = next((entry.ints for entry in node.attribute if entry.name == "dilations"), ())
        if node.op_type in UNDILATED and any(step != 1 for step in dilations):
            yield at(node, "operator-use", "TensorRT pools without dilation only", "express it with other operators")
        if node.op_type == "Loop":
            yield from _loop_use(view, node)


def _empty_input(view: GraphView) -> Iterator[Finding]:
    """Its parser looks for a bias wherever there is a third input; to ONNX one without a name is none."""
    for node in view.nodes:
        if has_empty_bias(node):
            problem = "an input without a name, for the bias that it does not have"
            remedy = "leave it out" + (", as --fix does" if view.main else "")
            yield at(node, "empty-input", problem, remedy, fixable=view.main)


def _loop_use(view: GraphView, node: onnx.NodeProto) -> Iterator[Finding]:
    """Its parser gives the body only what the Loop is given; without either the builder sees no end."""
    if not view.input(node, 0) and not view.input(node, 1):
        yield at(node, "operator-use", "has neither a trip count nor a condition", "give it a trip count")
        return
    for body in subgraphs(node):
        read = {name for inner in body.node for name in reads(inner)}
        for index, (value, (what, remedy)) in enumerate(zip(body.input, _LOOP_INPUTS, strict=False)):
            if not view.input(node, index) and value.name in read:
                yield at(node, "operator-use", f"its body reads {what}, and it is given none", remedy)


def _input_as_output(view: GraphView) -> Iterator[Finding]:
    """Both would have one name, so its parser gives the input another: an engine has none of the file's name."""
    for name in sorted(view.inputs & view.outputs if view.main else ()):
        problem = f"input '{name}' is an output too, and the engine's input is called '__{name}'"
        remedy = "give out an Identity of it, under a name of its own"
        yield Finding(rule="input-as-output", problem=problem, remedy=remedy)


RULES: dict[str, Rule] = {
    "zero-point": Rule(check=pairs.zero_point, document=_LAYER),
    "zero-point-count": Rule(check=lint_onnx.zero_point_count, document=lint_onnx.DOCUMENT),
    "unsigned": Rule(check=pairs.unsigned, document=_QUANTIZED),
    "missing-zero-point": Rule(check=pairs.missing_zero_point, document="onnx-tensorrt, the importer of Q and DQ"),
    "integer-type": Rule(check=pairs.integer_type, document=_QUANTIZED),
    "tensor-type": Rule(check=_tensor_type, document="onnx-tensorrt, docs/operators.md"),
    "int32-bias": Rule(check=pairs.int32_bias, document=_QUANTIZED),
    "dynamic-parameters": Rule(
        check=pairs.dynamic, document="TensorRT operator reference, Quantize: build-time constants"
    ),
    "scale": Rule(check=pairs.scale, document=_LAYER),
    "scale-count": Rule(check=lint_onnx.scale_count, document=lint_onnx.DOCUMENT),
    "scale-type": Rule(check=partial(lint_onnx.scale_type, severity="risky"), document=lint_onnx.DOCUMENT),
    "activation-granularity": Rule(check=pairs.activation_granularity, document="NVIDIA/TensorRT#4008"),
    "weight-axis": Rule(check=_weight_axis, document=f"{_QUANTIZED}; NVIDIA/TensorRT#2380"),
    "grouped-transposed": Rule(check=_grouped_transposed, document="NVIDIA/TensorRT#1934"),
    "grouped-convolution": Rule(check=_grouped_convolution, document="NVIDIA/TensorRT#4529"),
    "opset": Rule(check=_opset, document="TensorRT documentation, ONNX Opset Guide"),
    "integer-operator": Rule(check=_integer_operator, document="onnx-tensorrt, docs/operators.md"),
    "empty-input": Rule(check=_empty_input, document="measured: TensorRT for RTX 1.7.1"),
    "input-as-output": Rule(check=_input_as_output, document="measured: TensorRT for RTX 1.7.1"),
    "operator-use": Rule(check=_operator_use, document="onnx-tensorrt, docs/operators.md: restrictions"),
    "unsupported-operator": Rule(check=_unsupported_operator, document="onnx-tensorrt, docs/operators.md"),
}
