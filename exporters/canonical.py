"""A float graph in the one form that calibration, placement and the writers work on."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, version_converter

from ..core.errors import QuantizationError
from .onnx_file import save

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
    model = _upgraded(model)
    foreign = {node.domain for node in model.graph.node} - set(_STANDARD)
    folded = _folded(model)
    added = {node.domain for node in folded.graph.node} - set(_STANDARD) - foreign
    if added:
        raise QuantizationError(
            f"folding the graph brought in operators of {sorted(added)}; a target may not know them"
        )
    _pool_means(folded)
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
        return version_converter.convert_version(model, _OPSET)
    except Exception as error:  # the converter raises RuntimeError and others from C++
        raise QuantizationError(
            f"the graph has opset {version} and cannot be converted to {_OPSET}: {error}"
        ) from error


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
            raise QuantizationError(f"ONNX Runtime cannot load the graph: {error}") from error
        return onnx.load_model(str(target))


def _pool_means(model: onnx.ModelProto) -> None:
    """ReduceMean over all positions of `(N, C, ...)` -> GlobalAveragePool: which has INT8 kernels."""
    graph = model.graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    } | {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        rank = ranks.get(node.input[0], 0) if node.op_type == "ReduceMean" else 0
        if rank < 3 or _axes(node, constants, rank) != tuple(range(2, rank)):
            nodes.append(node)
            continue
        keep = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
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
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    else:
        axes = list(next((attribute.ints for attribute in node.attribute if attribute.name == "axes"), ()))
    return tuple(sorted(int(np.atleast_1d(axis)[0]) % rank for axis in axes))


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:  # a subgraph may read any of them
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove, in place, what an exporter leaves for debugging: stack traces with the paths of the machine it ran on."""
    graph = model.graph
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    del graph.metadata_props[:]
