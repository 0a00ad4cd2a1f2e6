"""Whether a file of a run is still the one that was judged, and what its label says it is."""

from pathlib import Path

import onnx

from ...core import digest
from ...core.errors import ArtifactError
from ...exporters.graph import onnx_file
from ...exporters.int8 import calibration_note
from ..report.report import ArtifactResult

# What only a quantized graph holds, in any dialect.
_QUANTIZED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


def problem(path: Path, said: ArtifactResult, calibration: str = "") -> str:
    """What is wrong with the file of an artefact in one sentence, or an empty text.

    Args:
        path: the file.
        said: what the report says of it.
        calibration: digest of the data that an INT8 file's ranges have to come from; empty: not known.
    """
    if not path.is_file():
        return f"{said.path} is missing"
    size = path.stat().st_size
    if size != said.file_bytes:
        how = "truncated" if size < said.file_bytes else "longer than it was"
        return f"{how}: {size:,} of {said.file_bytes:,} bytes"
    if (found := digest.of_file(path)) != said.digest:
        return f"not the file that was judged: SHA-256 {found[:12]}, the report has {said.digest[:12]}"
    try:
        model = onnx_file.load(path)
    except ArtifactError as error:
        return f"cannot be read: {error}"
    quantized = _is_quantized(model)
    if said.precision == "int8" and not quantized:
        return "labelled int8, but no layer in it is quantized: this is a float file"
    if said.precision == "float32" and quantized:
        return "labelled float32, but it holds quantized layers"
    if quantized and calibration and (data := calibration_note.data_of(model)) != calibration:
        whose = f"those with SHA-256 {data[:12]}" if data else "it does not say which"
        return f"stale calibration: its ranges come from other samples than the run's {calibration[:12]} ({whose})"
    return ""


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in _QUANTIZED for node in model.graph.node)
