"""A float graph in the one form that calibration, placement and the writers work on."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnxruntime
from onnx import helper, numpy_helper

from ...core.errors import QuantizationError
from .empty_bias import leave_out_empty_bias
from .names import unused
from .onnx_file import every_node, save, subgraphs
from .opset import at_opset

_OLDEST = 13  # per-channel scales need it
_OPSET = 17
_STANDARD = ("", "ai.onnx")


def canonicalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and batch norms, write average pooling as such, drop what the exporter noted down for itself.

    Names of inputs and outputs stay; the result computes the same within float rounding. A graph with operators outside
    the ONNX standard is folded as far as ONNX Runtime knows them.

    Raises:
        QuantizationError: an old graph that cannot be converted, or one that ONNX Runtime cannot load.
    """
    model = _with_fixed_weights(_upgraded(model))
    foreign = {node.domain for node in model.graph.node} - set(_STANDARD)
    folded = _folded(model)
    added = {node.domain for node in folded.graph.node} - set(_STANDARD) - foreign
    if added:
        raise QuantizationError(
            f"folding the graph brought in operators of {sorted(added)}; a target may not know them"
        )
    _pool_means(folded)
    leave_out_empty_bias(every_node(folded))
    strip_notes(folded)
    used = {node.domain for node in folded.graph.node}
    kept = [entry for entry in folded.opset_import if entry.domain in ("", *used)]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), 0)
    if version >= _OLDEST:
        return model
    try:
        return at_opset(model, _OPSET)
    except Exception as error:  # the converter raises RuntimeError and others from C++
        raise QuantizationError(
            f"the graph has opset {version} and cannot be converted to {_OPSET}: {error}"
        ) from error


def _with_fixed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without weights among the inputs: old exporters list them all, and what a caller may replace is never folded."""
    constants = {tensor.name for tensor in model.graph.initializer}
    if not constants & {value.name for value in model.graph.input}:
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.input[:]
    fixed.graph.input.extend(value for value in model.graph.input if value.name not in constants)
    fixed.ir_version = max(model.ir_version, 4)  # the first that allows it
    return fixed


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="edgesmith-graph-") as name:
        source, target = Path(name) / "source.onnx", Path(name) / "folded.onnx"
        save(model, source)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        try:
            onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            cause = str(error).replace(f"Load model from {source} failed:", "").strip()
            raise QuantizationError(f"ONNX Runtime cannot load the graph: {cause}") from error
        return onnx.load_model(str(target))


def _pool_means(model: onnx.ModelProto) -> None:
    """ReduceMean over all positions of `(N, C, ...)` -> GlobalAveragePool, for which runtimes have INT8 kernels."""
    graph = model.graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*onnx.shape_inference.infer_shapes(model).graph.value_info, *graph.input]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT  # means of other types have no pooling kernel
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    nodes = []
    for node in graph.node:
        rank = ranks.get(node.input[0], 0) if node.op_type == "ReduceMean" else 0
        keep = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        # A kept mean over the last axis of three is a normalization's, over features and not over positions.
        if rank < 3 + bool(keep) or _axes(node, constants, rank) != tuple(range(2, rank)):
            nodes.append(node)
            continue
        pooled = node.output[0] if keep else unused(f"{node.output[0]}_pooled", taken)
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool"))
        if not keep:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def _axes(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], rank: int) -> tuple[int, ...] | None:
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return None
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    else:
        axes = list(next((attribute.ints for attribute in node.attribute if attribute.name == "axes"), ()))
    return tuple(sorted(int(axis) % rank for axis in axes))


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    if any(True for node in graph.node for _ in subgraphs(node)):  # a subgraph may read any of them
        return
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove, in place, what an exporter leaves for debugging: stack traces with the paths of the machine it ran on.

    Every node has a name of its own afterwards.
    """
    model.doc_string = ""
    taken: set[str] = set()
    _strip_graph(model.graph, taken)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node, taken)


def _strip_graph(graph: onnx.GraphProto, taken: set[str]) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for note in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        note.doc_string = ""
        del note.metadata_props[:]
    _strip_nodes(graph.node, taken)


def _strip_nodes(nodes: Iterable[onnx.NodeProto], taken: set[str]) -> None:
    for node in nodes:
        node.name = unused(node.name or node.op_type, taken)
        node.doc_string = ""
        del node.metadata_props[:]
        for graph in subgraphs(node):
            _strip_graph(graph, taken)
