"""A float ONNX graph, Q/DQ pairs included, cast to FP16; inputs and outputs stay float32.

TensorRT 11 takes precision from the graph alone, so FP16 has to stand in the file. The rewriting is ONNX Runtime's own
(`onnxruntime.transformers.float16`); what it would clip in silence is refused here first.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from ...core.errors import QuantizationError
from .opset import at_opset

LARGEST = float(np.finfo(np.float16).max)
QDQ_OPSET = 19  # the first in which QuantizeLinear and DequantizeLinear take FP16
# Stay in float32: sums of squares, powers and exponentials pass 65504 with ordinary activations.
FLOAT_OPERATORS = (
    "Exp",
    "InstanceNormalization",
    "LayerNormalization",
    "Pow",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceSum",
    "ReduceSumSquare",
)
_STANDS_FOR_INFINITY = 1e30  # bounds of a Clip, masked scores: clipped to the largest FP16 they mean the same
_SCALED = ("QuantizeLinear", "DequantizeLinear")
_WORST_SCALE_ERROR = 1 / 254  # relative: half a step at the largest INT8 value
_STEPS = 127


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in FP16.

    Raises:
        QuantizationError: a weight outside FP16, a scale that FP16 cannot tell, an opset that cannot be raised.
    """
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _check(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(_with_half_pairs(model))
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *FLOAT_OPERATORS]
    half: onnx.ModelProto = float16.convert_float_to_float16(copy, keep_io_types=True, op_block_list=blocked)
    OnnxModel(half).topological_sort()  # the casts at the edges were put last
    return half


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether Q/DQ pairs are in it."""
    return any(node.op_type in _SCALED for node in model.graph.node)


def _with_half_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), QDQ_OPSET)
    if not is_quantized(model) or opset >= QDQ_OPSET:
        return model
    try:
        return at_opset(model, QDQ_OPSET)
    except Exception as error:  # the C++ converter raises several kinds, none of them documented
        raise QuantizationError(
            f"FP16 with Q/DQ needs opset {QDQ_OPSET}, and the graph's {opset} cannot be raised: {error}; "
            f"export it with opset {QDQ_OPSET} or later"
        ) from error


def _check(model: onnx.ModelProto) -> None:
    scales = {node.input[1] for node in model.graph.node if node.op_type in _SCALED}
    for name, values in _constants(model):
        finite = np.abs(values[np.isfinite(values)])
        finite = finite[finite < _STANDS_FOR_INFINITY]
        if finite.size and float(finite.max()) > LARGEST:
            raise QuantizationError(
                f"weight '{name}': {float(finite.max()):.6g} is outside FP16, whose largest number is {LARGEST:g}; "
                "keep the file as it is (precision 'as-is')"
            )
        if name in scales:
            _check_scale(name, finite)


def _check_scale(name: str, scale: np.ndarray) -> None:
    """Below FP16's normal numbers a scale loses digits; where the whole range is that small it does not matter."""
    error = np.abs(scale.astype(np.float16).astype(np.float64) - scale) / scale
    matters = scale * _STEPS >= float(np.finfo(np.float16).tiny)
    worst = error[matters & (error > _WORST_SCALE_ERROR)]
    if worst.size:
        value = float(scale[matters][np.argmax(error[matters])])
        raise QuantizationError(
            f"scale '{name}': {value:.3g} is too small for FP16, which is {worst.max():.1%} off there; "
            "keep the file as it is (precision 'as-is')"
        )


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Float tensors of the main graph: initializers, and what Constant nodes hold."""
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors += [(node.output[0], entry.t) for entry in node.attribute if entry.name == "value"]
    for name, tensor in tensors:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield name, numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
