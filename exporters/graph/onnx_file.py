"""Reading and writing ONNX files, of which none is trusted before it has been looked at."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from ...core.errors import ArtifactError
from ...core.files import write_atomic
from ...core.values import TensorSpec

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# Where infinity cannot be meant; elsewhere it can: an attention mask is added as 0 and -infinity.
_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "BatchNormalization", "InstanceNormalization")
_TOO_LARGE = "the model does not fit in one ONNX file of 2 GiB"


def load(path: Path, valid: bool = True) -> onnx.ModelProto:
    """Read a model with all its weights in memory.

    Args:
        path: ONNX file.
        valid: refuse what ONNX's checker refuses too; False: for those who say what is wrong with it.

    Raises:
        ArtifactError: missing, truncated, not ONNX; weights outside the model's folder, missing or short; NaN weights.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the ONNX file: {error.strerror}") from error
    except DecodeError as error:
        raise ArtifactError(f"{path}: not an ONNX file, or truncated; export it again") from error
    if not model.graph.output or model.ir_version == 0:
        raise ArtifactError(f"{path}: not an ONNX file, or truncated: it has no graph outputs; export it again")
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ArtifactError(f"{path}: damaged: a name in it is no UTF-8 text; export it again")
    _read_external(model, path)
    _check_tensors(model, path)
    problem = _add_shapes(model) if valid else ""
    problem = (invalid(model) or problem) if valid else ""
    if problem:
        raise ArtifactError(f"{path}: {problem}")
    return model


def invalid(model: onnx.ModelProto) -> str:
    """What ONNX's checker has against a model; empty: nothing."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return f"not a valid ONNX model: {str(error).splitlines()[0]}"
    except (EncodeError, ValueError) as error:
        return f"{_TOO_LARGE}: {error}"
    return ""


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file, complete or absent.

    Raises:
        ArtifactError: larger than the 2 GiB one ONNX file can hold.
    """
    try:
        data = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:  # protobuf's own limit: which of the two hangs on its version
        raise ArtifactError(f"{path}: {_TOO_LARGE}: {error}") from error
    write_atomic(path, data)


def specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs; a dynamic axis is the name it has, or `?`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs a node carries: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the main graph, of graphs inside nodes and of local functions."""
    yield from every_node_of([*(node for f in model.functions for node in f.node), *reversed(model.graph.node)])


def every_node_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These, the last first, and those of graphs inside them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for graph in subgraphs(node) for inner in graph.node]


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Every name and operator; protobuf gives those that are not text as bytes."""
    graphs = [model.graph]
    yield from (entry.domain for entry in model.opset_import)
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            yield from (each.name for each in (*graph.initializer, *graph.input, *graph.output, *graph.value_info))
        while nodes:
            node = nodes.pop()
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
            graphs.extend(subgraphs(node))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    # Some exporters write -1 where they mean an open axis.
    shape = tuple(d.dim_value if d.dim_value > 0 else (d.dim_param or "?") for d in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor of a file under the name it is read by: those of subgraphs, functions and training too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse.values.name, sparse)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in nodes:
        name = next(iter(node.output), node.name)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield name, attribute.t
            yield from ((name, tensor) for tensor in attribute.tensors)
            single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in [*single, *attribute.sparse_tensors]:
                yield from _sparse_tensors(name, sparse)
        for graph in subgraphs(node):
            yield from _graph_tensors(graph)


def _sparse_tensors(name: str, sparse: onnx.SparseTensorProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield name, sparse.values
    yield name, sparse.indices


def _add_shapes(model: onnx.ModelProto) -> str:
    """Shapes that exporters leave out, which the standard wants and runtimes do without: those of outputs follow.

    Returns:
        What lacks one all the same; empty: nothing. It is written as a number, so that the checker can say whether more
        is wrong.
    """
    if not _without_shape(model.graph):
        return ""
    try:
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    except Exception:  # several kinds from C++, of graphs that ONNX's checker refuses in words
        inferred = {}
    for value in _without_shape(model.graph):
        value.CopyFrom(inferred.get(value.name, value))
    missing = _without_shape(model.graph)
    for value in missing:
        value.type.tensor_type.shape.SetInParent()
    return f"'{missing[0].name}' has no shape, and none follows from the graph; export it again" if missing else ""


def _without_shape(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs and outputs that are tensors of unknown rank."""
    values = [value for value in (*graph.input, *graph.output) if value.type.HasField("tensor_type")]
    return [value for value in values if not value.type.tensor_type.HasField("shape")]


def _read_external(model: onnx.ModelProto, path: Path) -> None:
    """Read weights kept beside the model, once all of them are known to lie there."""
    external = [(name, tensor) for name, tensor in _tensors(model) if uses_external_data(tensor)]
    folder = path.resolve().parent  # of the file itself: a link to it has no weights beside it
    for name, tensor in external:
        _check_external(name, tensor, folder, path)
    for name, tensor in external:
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:  # onnx takes no links, even harmless ones
            raise ArtifactError(f"{path}: tensor '{name}': its data cannot be read: {error}") from error


def _check_external(name: str, tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    """Refuse weights that are not in a file beside the model, before anything is read from them."""
    try:
        info = ExternalDataInfo(tensor)
        data = (folder / info.location).resolve()
        needed = int(info.offset or 0) + int(info.length or 0)
    except ValueError as error:  # a negative or unreadable number, a NUL in the name
        raise ArtifactError(f"{path}: tensor '{name}': where its data lies cannot be read: {error}") from error
    if not info.location or Path(info.location).is_absolute() or not data.is_relative_to(folder):
        raise ArtifactError(
            f"{path}: tensor '{name}' points outside the model's folder ('{info.location}'); "
            "such a file is not opened: put its weights beside it, or export it as one file"
        )
    if not data.is_file():
        raise ArtifactError(f"{path}: tensor '{name}': its data file '{info.location}' is missing")
    if data.stat().st_size < needed:
        raise ArtifactError(
            f"{path}: tensor '{name}': its data file '{info.location}' holds {data.stat().st_size:,} bytes "
            f"and {needed:,} are needed; it is truncated"
        )


def _check_tensors(model: onnx.ModelProto, path: Path) -> None:
    multiplied = _multiplied(model)
    for name, tensor in _tensors(model):
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:  # too few bytes, or a type that does not exist
            raise ArtifactError(f"{path}: tensor '{name}' cannot be read: {error}; the file is damaged") from error
        if tensor.data_type not in _FLOATS:
            continue
        if bool(np.isnan(values).any()) or (name in multiplied and bool(np.isinf(values).any())):
            raise ArtifactError(f"{path}: weight '{name}' holds NaN or infinity; train or export the model again")


def _multiplied(model: onnx.ModelProto) -> set[str]:
    """What a multiplying operator reads, in any graph of the file."""
    return {name for node in every_node(model) if node.op_type in _MULTIPLYING for name in node.input}
