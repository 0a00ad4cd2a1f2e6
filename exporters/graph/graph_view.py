"""One graph of an ONNX model as the rules of a lint see it: who makes a tensor, who reads it, what is constant."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from .names import names_read
from .onnx_file import subgraphs

_STANDARD = ("", "ai.onnx")
_UNTYPED = TensorProto.UNDEFINED
_NUMBERS: dict[str, tuple[type, int]] = {
    "value_float": (np.float32, TensorProto.FLOAT),
    "value_floats": (np.float32, TensorProto.FLOAT),
    "value_int": (np.int64, TensorProto.INT64),
    "value_ints": (np.int64, TensorProto.INT64),
}
_FOLDED = ("Add", "Cast", "Div", "Expand", "Identity", "Mul", "Neg", "Reshape", "Squeeze", "Sub", "Unsqueeze")
_LARGEST_FOLDED = 65_536  # numbers; a scale for each channel, and no weights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GraphView:
    """The main graph of a model, or one inside it; what stands around it can be seen from there."""

    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[
        str, np.ndarray
    ]  # initializers that no caller can replace, what Constant nodes hold, and what is computed from both
    producers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, tuple[onnx.NodeProto, ...]]
    types: Mapping[str, int]  # tensor -> `TensorProto.DataType`, where it is known
    shapes: Mapping[str, tuple[int | str, ...]]  # tensor -> sizes, where the rank is known; "?" for a dynamic axis
    inputs: frozenset[str]  # of the model
    outputs: frozenset[str]  # of this graph
    main: bool = True

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """The value of a node's input, if it is a constant."""
        return self.constants.get(self.input(node, index))

    def input(self, node: onnx.NodeProto, index: int) -> str:
        """The name of a node's input; empty: it has none."""
        return node.input[index] if len(node.input) > index else ""

    def producer(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of one of these kinds."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        """Every QuantizeLinear and DequantizeLinear, those of ONNX Runtime's own domain too."""
        return (node for node in self.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))

    def integer_type(self, node: onnx.NodeProto) -> int:
        """The integer type that a QuantizeLinear makes or a DequantizeLinear reads; 0: unknown.

        As ONNX says it: that of the zero point; without one the attribute `output_dtype`, else UINT8 for a
        QuantizeLinear, and the type of what it reads for a DequantizeLinear.
        """
        zero = self.input(node, 2)
        if zero:
            return self.types.get(zero, _UNTYPED)
        if node.op_type == "DequantizeLinear":
            return self.types.get(node.input[0], _UNTYPED)
        return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8


def views(model: onnx.ModelProto) -> Iterator[GraphView]:
    """The main graph, then every graph inside it, depth first; a call of a local function is replaced by its nodes."""
    if model.functions:
        model = without_calls(model)
    opset = opset_of(model)
    types, shapes = _known(model)
    outer = GraphView(
        opset=opset,
        nodes=(),
        constants={},
        producers={},
        readers={},
        types=types,
        shapes=shapes,
        inputs=frozenset(value.name for value in model.graph.input),
        outputs=frozenset(),
    )
    yield from _graph_views(model.graph, outer, main=True)


def without_calls(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every call of a local function is replaced by its nodes.

    ONNX's inliner leaves a function that imports another opset than the model. The standard wants operators in it that
    are the same in both, and ONNX Runtime runs them as the model's: so they are taken here.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    if not named.functions:
        return named
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for entry in (entry for function in named.functions for entry in function.opset_import):
        entry.version = versions.get(entry.domain, entry.version)
    return inliner.inline_local_functions(named)


def opset_of(model: onnx.ModelProto | onnx.FunctionProto) -> int:
    """Version of ONNX's own operators; 0: none is imported."""
    return next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), 0)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _graph_views(graph: onnx.GraphProto, outer: GraphView, main: bool = False) -> Iterator[GraphView]:
    constants, types = dict(outer.constants), dict(outer.types)
    producers, readers = dict(outer.producers), dict(outer.readers)
    replaceable, nodes = {value.name for value in graph.input}, tuple(graph.node)
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
        if tensor.name not in replaceable:
            constants[tensor.name] = numpy_helper.to_array(tensor)
    for node in nodes:
        producers |= dict.fromkeys(node.output, node)
        for name in dict.fromkeys([*node.input, *(name for inner in subgraphs(node) for name in names_read(inner))]):
            readers[name] = (*readers.get(name, ()), node)
        if node.op_type == "Constant":
            _note_constant(node, constants, types)
        _fold(node, constants, types)
    view = dataclasses.replace(
        outer,
        nodes=nodes,
        constants=constants,
        producers=producers,
        readers=readers,
        types=types,
        outputs=frozenset(value.name for value in graph.output),
        main=main,
    )
    yield view
    for node in nodes:
        for inner in subgraphs(node):
            yield from _graph_views(inner, view)


def _note_constant(node: onnx.NodeProto, constants: dict[str, np.ndarray], types: dict[str, int]) -> None:
    """What a Constant node holds, a tensor or bare numbers; strings and sparse tensors are left out."""
    entry, name = node.attribute[0], node.output[0]
    if entry.name == "value":
        constants[name], types[name] = numpy_helper.to_array(entry.t), entry.t.data_type
    elif entry.name in _NUMBERS:
        kind, types[name] = _NUMBERS[entry.name]
        constants[name] = np.array(helper.get_attribute_value(entry), kind)


def _fold(node: onnx.NodeProto, constants: dict[str, np.ndarray], types: dict[str, int]) -> None:
    """Note down what a small expression of constants gives; exporters write scales and zero points so."""
    if node.op_type not in _FOLDED or not all(name in constants for name in node.input):
        return
    if sum(constants[name].size for name in node.input) > _LARGEST_FOLDED:
        return
    values = {name: constants[name] for name in node.input}
    try:
        (result,) = ReferenceEvaluator(node).run(None, values)
    except Exception:  # an older form of the operator, a type that numpy has not: it stays unknown
        return
    constants[node.output[0]] = np.asarray(result)
    types[node.output[0]] = helper.np_dtype_to_tensor_dtype(np.asarray(result).dtype)


def _known(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, tuple[int | str, ...]]]:
    """Types and shapes of the main graph's tensors. Shape inference that fails leaves what the file itself says."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # a graph that it cannot follow; several C++ exceptions, and too large a model is one
        graph = model.graph
    types: dict[str, int] = {}
    shapes: dict[str, tuple[int | str, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else "?" for d in tensor.shape.dim)
    return types, shapes
