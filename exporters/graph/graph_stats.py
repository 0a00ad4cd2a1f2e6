"""Multiply-accumulates and parameters of an ONNX graph, float or INT8 alike."""

import math
from collections.abc import Mapping

import onnx

Shapes = Mapping[str, tuple[int, ...]]
_WEIGHT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
)


def macs_and_parameters(model: onnx.ModelProto, batch: int = 1) -> tuple[int | None, int]:
    """Count what Conv, ConvTranspose, Gemm and MatMul multiply for one batch, and the numbers in weights and biases.

    Scales, zero points and shape constants are no parameters, so that an INT8 file counts as its float original.

    Returns:
        MACs (None where a shape depends on more than the batch size), parameters.
    """
    return _macs(model, batch), _parameters(model)


def macs_by_node(model: onnx.ModelProto, shapes: Shapes) -> list[int | None]:
    """Multiply-accumulates of every node of the graph, in its order; None where a shape is unknown.

    Args:
        model: float or INT8.
        shapes: of its tensors, see `shapes_of`.
    """
    found: list[int | None] = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"):
            found.append(0)
            continue
        names = (node.input[0], node.input[1], node.output[0])
        known = all(name in shapes for name in names)
        found.append(_node_macs(node, *(shapes[name] for name in names)) if known else None)
    return found


def _macs(model: onnx.ModelProto, batch: int) -> int | None:
    total = 0
    for macs in macs_by_node(model, shapes_of(model, batch)):
        if macs is None:
            return None
        total += macs
    return total


def _node_macs(node: onnx.NodeProto, data: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...]) -> int:
    if node.op_type == "Conv":  # weight (out, in / groups, ...)
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, ...)
        return math.prod(data) * math.prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * (data[0] if transposed else data[-1])


def shapes_of(model: onnx.ModelProto, batch: int) -> Shapes:
    """Shapes of all tensors that follow from the batch size."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # made for the dynamic batch
    for value in fixed.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and not dimensions[0].HasField("dim_value"):
            dimensions[0].dim_value = batch
    for value in fixed.graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_param"):
                dimension.ClearField("dim_param")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type  # without a shape its rank is not known, and it is no scalar
        if tensor.HasField("shape") and all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            shapes[value.name] = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    return shapes


def _parameters(model: onnx.ModelProto) -> int:
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    found = {node.output[1] for node in model.graph.node if node.op_type == "DynamicQuantizeLinear"}
    scaled = [node for node in model.graph.node if node.op_type == "Mul" and found.intersection(node.input)]
    scales = {name for node in quantizers for name in node.input[1:]} | {name for node in scaled for name in node.input}
    biases = {node.input[0] for node in quantizers}  # an INT32 initializer is a bias only if it is dequantized
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return sum(
        math.prod(tensor.dims)
        for name, tensor in tensors.items()
        if name not in scales
        and (tensor.data_type in _WEIGHT_TYPES or (tensor.data_type == onnx.TensorProto.INT32 and name in biases))
    )
