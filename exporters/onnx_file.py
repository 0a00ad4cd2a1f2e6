"""Reading and writing ONNX files, of which none is trusted before it has been looked at."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from ..core.errors import ArtifactError
from ..core.files import write_atomic
from ..core.values import TensorSpec

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def load(path: Path) -> onnx.ModelProto:
    """Read a model with all its weights in memory.

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
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            _check_external(tensor, path)
    load_external_data_for_model(model, str(path.parent))
    _check(model, path)
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file, complete or absent.

    Raises:
        ArtifactError: larger than the 2 GiB one ONNX file can hold.
    """
    try:
        data = model.SerializeToString(deterministic=True)
    except ValueError as error:  # protobuf's own limit
        raise ArtifactError(f"{path}: the model does not fit in one ONNX file of 2 GiB: {error}") from error
    write_atomic(path, data)


def specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs; a dynamic axis is the name it has, or `?`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor in a graph: initializers, attributes of nodes, and those of subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _tensors(subgraph)


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse weights that are not in a file beside the model, before anything is read from them."""
    info = ExternalDataInfo(tensor)
    folder = path.resolve().parent
    data = (folder / info.location).resolve()
    if not info.location or Path(info.location).is_absolute() or not data.is_relative_to(folder):
        raise ArtifactError(
            f"{path}: tensor '{tensor.name}' points outside the model's folder ('{info.location}'); "
            "such a file is not opened: put its weights beside it, or export it as one file"
        )
    if not data.is_file():
        raise ArtifactError(f"{path}: tensor '{tensor.name}': its data file '{info.location}' is missing")
    needed = (info.offset or 0) + (info.length or 0)
    if data.stat().st_size < needed:
        raise ArtifactError(
            f"{path}: tensor '{tensor.name}': its data file '{info.location}' holds {data.stat().st_size:,} bytes "
            f"and {needed:,} are needed; it is truncated"
        )


def _check(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except ValueError as error:
            raise ArtifactError(
                f"{path}: tensor '{tensor.name}' cannot be read: {error}; the file is damaged"
            ) from error
        if tensor.data_type in _FLOATS and not bool(np.isfinite(values).all()):
            raise ArtifactError(
                f"{path}: weight '{tensor.name}' holds NaN or infinity; train or export the model again"
            )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"{path}: not a valid ONNX model: {str(error).splitlines()[0]}") from error
