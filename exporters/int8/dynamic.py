"""INT8 products whose input ranges are found at run time, for each run anew; `qdq` writes all the rest."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...core.errors import QuantizationError
from ...core.values import QuantParams
from ..graph.graph_index import attribute
from ..graph.names import names_read, unused
from ..graph.unread import drop_unread_constants
from .dialect import Dialect
from .placement import Placement, place
from .qdq import weight_grid, write_qdq

PRODUCTS = ("MatMul", "Gemm")


def products(model: onnx.ModelProto, placement: Placement) -> tuple[str, ...]:
    """The nodes of a placement that multiply an activation by a constant matrix."""
    chosen = set(placement.nodes)
    return tuple(node.name for node in model.graph.node if node.name in chosen and node.op_type in PRODUCTS)


def leads(model: onnx.ModelProto, placement: Placement) -> bool:
    """Whether most layers with weights are MatMuls, as in a transformer: only there dynamic ranges were seen to pay."""
    chosen = set(placement.nodes)
    kinds = Counter(node.op_type for node in model.graph.node if node.name in chosen)
    return kinds["MatMul"] > kinds["Conv"] + kinds["Gemm"]


def write_int8(
    model: onnx.ModelProto,
    params: Mapping[str, QuantParams],
    dialect: Dialect,
    keep_float: Collection[str] = (),
) -> onnx.ModelProto:
    """Write any dialect: as `qdq.write_qdq`, but for the products of a dynamic one.

    Raises:
        QuantizationError: see `write_qdq`.
    """
    found = products(model, place(model, keep_float)) if dialect.dynamic else ()
    written = write_qdq(model, params, dialect, {*keep_float, *found})
    if found:
        _write_products(written, found, params, dialect)
        onnx.checker.check_model(written)
    return written


def _write_products(
    model: onnx.ModelProto, names: Collection[str], params: Mapping[str, QuantParams], dialect: Dialect
) -> None:
    """Write products, in place, with standard operators that ONNX Runtime turns into one kernel.

    `DynamicQuantizeLinear` finds the range of the input, once for all that read it; `MatMulInteger` multiplies it by
    signed weights; its INT32 result times both scales is the float result, and a Gemm's bias is added to it.

    Args:
        model: a graph in which they are in float.
        names: of MatMul and Gemm nodes with constant weights.
        params: of their weights: one scale for each output channel, or one for all.
    """
    writer = _Writer(model, params, dialect)
    nodes = [part for node in model.graph.node for part in (writer.product(node) if node.name in names else [node])]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
    drop_unread_constants(model.graph)


class _Writer:
    def __init__(self, model: onnx.ModelProto, params: Mapping[str, QuantParams], dialect: Dialect) -> None:
        self._graph, self._params, self._dialect = model.graph, params, dialect
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._taken = names_read(model.graph) | {
            name for node in model.graph.node for name in [node.name, *node.output]
        }
        self._inputs: dict[str, list[str]] = {}  # activation -> its integers, their scale and zero point
        self._weights: dict[tuple[str, bool], list[str]] = {}  # weight, transposed -> its integers and their scale

    def product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        data, weight, *bias = node.input
        before = [] if data in self._inputs else [self._range(data)]
        integers, scale, zero = self._inputs[data]
        multiplied, weight_scale = self._weight(weight, bool(attribute(node, "transB", 0)))
        result = node.output[0]
        whole, cast, factor, scaled = (
            self._unused(f"{result}_{part}") for part in ("integers", "cast", "factor", "scaled")
        )
        if not any(bias):
            scaled = result
        name = node.name  # the kernel that all of them become is called after the first
        nodes = [
            helper.make_node("MatMulInteger", [integers, multiplied, zero], [whole], name=name),
            helper.make_node("Cast", [whole], [cast], name=self._unused(f"{name}_cast"), to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [scale, weight_scale], [factor], name=self._unused(f"{name}_factor")),
            helper.make_node("Mul", [cast, factor], [scaled], name=self._unused(f"{name}_scaled")),
        ]
        if any(bias):
            nodes.append(helper.make_node("Add", [scaled, bias[0]], [result], name=self._unused(f"{name}_bias")))
        return [*before, *nodes]

    def _range(self, data: str) -> onnx.NodeProto:
        made = [self._unused(f"{data}_{part}") for part in ("quantized", "scale", "zero_point")]
        self._inputs[data] = made
        return helper.make_node("DynamicQuantizeLinear", [data], made, name=self._unused(f"{data}_Q"))

    def _weight(self, name: str, transposed: bool) -> list[str]:
        if (name, transposed) not in self._weights:
            if name not in self._params:
                raise QuantizationError(f"tensor '{name}': no quantization parameters; calibrate it")
            values = numpy_helper.to_array(self._constants[name]).astype(np.float64)
            scale, limit = weight_grid(self._params[name], 2, 0 if transposed else 1, self._dialect)
            integers = np.clip(np.rint(values / scale), -limit, limit).astype(np.int8)
            self._weights[name, transposed] = [
                self._constant(f"{name}_quantized", np.ascontiguousarray(integers.T) if transposed else integers),
                self._constant(f"{name}_scale", scale.reshape(-1) if scale.ndim else scale),
            ]
        return self._weights[name, transposed]

    def _constant(self, name: str, array: np.ndarray) -> str:
        name = self._unused(name)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _unused(self, name: str) -> str:
        return unused(name, self._taken)
