"""What `edgesmith inspect` finds in a model, and how an ONNX file is looked at."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ...core.errors import ArtifactError
from ...core.values import TensorSpec
from ...exporters.graph import onnx_file
from ...exporters.graph.graph_stats import Shapes, macs_and_parameters, macs_by_node, shapes_of
from ...exporters.linting.lint import Finding
from ...exporters.sessions import ort_kernels
from ...exporters.targets.targets import TARGETS
from ..metrics.layer_closeness import LayerCloseness

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
# What has an INT8 kernel of its own; the others only move values.
_COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool")
_FUSED = ("Relu", "Clip")  # run inside the node before them
_INTEGER = (*ort_kernels.INT8, "MatMulNBits")  # how operators begin that compute with integers themselves
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_Seen = tuple[onnx.NodeProto, Mapping[str, np.ndarray]]  # a node, and the constants that it sees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer or node."""

    name: str
    kind: str  # class or operator
    shape: tuple[int | str, ...] | None  # of its output for one sample; None: unknown
    macs: int | None  # of one sample; None: unknown
    params: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that can only leave together (torch)."""

    root: str
    channels: int
    layers: tuple[str, ...]  # those that write the channels
    refused: str = ""  # why none of them can be pruned; empty: they can
    rows: int = 1  # of the root layer in a channel: a head has many


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedOps:
    """How much of an operator runs in INT8."""

    op: str
    int8: int
    total: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetFindings:
    """What a target would say about the file; nothing: it takes it."""

    target: str
    findings: tuple[Finding, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """A model from the inside. The last seven fields are an ONNX file's, `groups` a torch module's."""

    model: str
    kind: str  # "torch" or "onnx"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    macs: int | None
    params: int
    groups: tuple[Group, ...] = ()
    opset: int | None = None
    dialect: str = ""
    quantized: tuple[QuantizedOps, ...] = ()
    targets: tuple[TargetFindings, ...] = ()
    unknown_operators: tuple[str, ...] = ()  # outside ONNX's own set
    closeness: tuple[LayerCloseness, ...] = ()  # of every layer to the original's, the worst first; empty: not asked
    in_float: tuple[str, ...] | None = ()  # planned in INT8, and ONNX Runtime here runs them in float; None: not known


def inspect_onnx(path: Path) -> Inspection:
    """Look at an ONNX file without running it.

    Raises:
        ArtifactError: it cannot be read, see `onnx_file.load`.
    """
    model = onnx_file.load(path)
    inputs, outputs = onnx_file.specs(model)
    macs, params = macs_and_parameters(model)
    return Inspection(
        model=str(path),
        kind="onnx",
        inputs=inputs,
        outputs=outputs,
        layers=tuple(_layers(model, shapes_of(model, 1))),
        macs=macs,
        params=params,
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        dialect=dialect_of(model),
        quantized=quantized_ops(model),
        targets=tuple(TargetFindings(target=name, findings=target.lint(path)) for name, target in TARGETS.items()),
        unknown_operators=unknown_operators(model),
        in_float=in_float(path, model),
    )


def dialect_of(model: onnx.ModelProto) -> str:
    """How INT8 is written: by the zero points of what is quantized at run time, and by INT32 biases.

    Graphs inside nodes and local functions are looked into too.

    Returns:
        "float", "s8-symmetric", "s8-asymmetric", "u8" (zero points 0 and 128), "u8-asymmetric", "mixed" (signed and
        unsigned) or "unknown" (other types and operators, or zero points that are no constants where they are read; a
        local function's are looked for in no graph); ", INT32 bias" behind it with one.
        Where ranges are found at run time: "dynamic", or ", dynamic" behind it.
    """
    nodes = list(_with_constants(model.graph, {}))
    nodes += [(node, {}) for function in model.functions for node in onnx_file.every_node_of(function.node)]
    quantizers = [each for each in nodes if each[0].op_type == "QuantizeLinear"]
    reads = [each for each in nodes if each[0].op_type == "DequantizeLinear"]
    dynamic = any(node.op_type == "DynamicQuantizeLinear" for node, _ in nodes)
    if dynamic and not quantizers:
        return "dynamic"
    if not quantizers and not reads:
        return "unknown" if any(node.op_type.startswith(_INTEGER) for node, _ in nodes) else "float"
    bias = any(node.input[0] in known and known[node.input[0]].dtype == np.int32 for node, known in reads)
    notes = (", INT32 bias" if bias else "") + (", dynamic" if dynamic else "")
    return _activation_dialect(quantizers) + notes


def quantized_ops(model: onnx.ModelProto) -> tuple[QuantizedOps, ...]:
    """Of every operator that has a node in INT8: how many of its nodes. All that such a node reads is dequantized."""
    total = Counter(node.op_type for node in model.graph.node)
    found = Counter(node.op_type for node in int8_nodes(model))
    return tuple(QuantizedOps(op=op, int8=count, total=total[op]) for op, count in sorted(found.items()))


def int8_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes that the file plans to run in INT8."""
    constants, produced = _constants(model.graph), {name: node for node in model.graph.node for name in node.output}
    int8: set[str] = set()  # outputs of such nodes
    for node in model.graph.node:
        if node.op_type in (*_QUANTIZERS, "Constant"):
            continue
        if _runs_in_int8(node, constants, produced, int8):
            int8.update(node.output)
            yield node


def in_float(path: Path, model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Nodes between Q/DQ pairs that ONNX Runtime does not run in INT8 on this machine, once it has optimised the graph.

    Returns:
        Their names; None where ONNX Runtime cannot load the file.
    """
    planned = [node.name for node in int8_nodes(model) if node.op_type in _COMPUTING]
    if not planned:
        return ()
    try:
        run = {kernel.node for kernel in ort_kernels.planned(path) if kernel.int8}
    except ArtifactError:
        return None
    return tuple(name for name in planned if name not in run)


def unknown_operators(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators that neither ONNX's own set at the file's opset nor the file's functions define."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    own = {(function.domain, function.name) for function in model.functions}
    missing = {
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for node in model.graph.node
        if (node.domain, node.op_type) not in own
        and not (
            node.domain in _STANDARD and onnx.defs.has(node.op_type, versions.get(node.domain, 1), _domain(node.domain))
        )
    }
    return tuple(sorted(missing))


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _activation_dialect(quantizers: list[_Seen]) -> str:
    zeros = [known.get(node.input[2]) if len(node.input) > 2 else None for node, known in quantizers]
    known = [zero for zero in zeros if zero is not None]
    types = {zero.dtype.name for zero in known}
    if len(known) != len(zeros) or not types or not types <= {"int8", "uint8"}:
        return "unknown"
    if len(types) == 2:
        return "mixed"
    values = {int(value) for zero in known for value in zero.reshape(-1)}
    if types == {"int8"}:
        return "s8-symmetric" if values == {0} else "s8-asymmetric"
    return "u8" if values <= {0, 128} else "u8-asymmetric"


def _runs_in_int8(
    node: onnx.NodeProto,
    constants: Mapping[str, np.ndarray],
    produced: Mapping[str, onnx.NodeProto],
    int8: set[str],
) -> bool:
    if "Integer" in node.op_type or node.op_type.startswith("QLinear"):
        return True
    if node.op_type in _FUSED:
        return node.input[0] in int8
    tensors = [name for name in node.input[:2] if name and name not in constants]
    return bool(tensors) and all(name in produced and produced[name].op_type == "DequantizeLinear" for name in tensors)


def _layers(model: onnx.ModelProto, shapes: Shapes) -> Iterator[Layer]:
    constants = _constants(model.graph)
    dequantized = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node, macs in zip(model.graph.node, macs_by_node(model, shapes), strict=True):
        if node.op_type in (*_QUANTIZERS, "Constant"):
            continue
        weights = [dequantized.get(name, name) for name in node.input]
        params = sum(constants[name].size for name in weights if name in constants and _is_weight(constants[name]))
        name = node.name or (node.output[0] if node.output else "")
        shape = shapes.get(node.output[0]) if node.output else None
        yield Layer(name=name, kind=node.op_type, shape=shape, macs=macs, params=params)


def _is_weight(array: np.ndarray) -> bool:
    """Shapes and indices are INT64; an INT32 constant is a bias."""
    return array.dtype.kind in "fV" or array.dtype in (np.int8, np.uint8, np.int32)


def _with_constants(graph: onnx.GraphProto, outer: Mapping[str, np.ndarray]) -> Iterator[_Seen]:
    """Every node, and those of graphs inside nodes, with the constants that it sees."""
    own = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    known = {name: array for name, array in outer.items() if name not in own} | _constants(graph)
    for node in graph.node:
        yield node, known
        for inner in onnx_file.subgraphs(node):
            yield from _with_constants(inner, known)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found
