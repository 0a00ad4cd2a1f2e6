"""One cell: where the time of edgesmith's file goes in ONNX Runtime, beside that of the float file."""

from pathlib import Path

import onnx

from edgesmith.benches.timing import environment
from edgesmith.core import digest
from edgesmith.exporters.sessions import ort_kernels

from . import cells
from .cells import Cell
from .models import Model
from .timing import feeds

_SECONDS = 3.0
_LAYERS = ("Conv", "MatMul", "Gemm")  # in the names of all kernels that multiply by weights, or by each other


def profiled(root: Path, model: Model, file: Path, batch: int) -> Cell:
    """Milliseconds of a run, one thread: `float_ms`, `int8_ms`, and of these `layers_ms`, convolutions and products."""
    original = model.folder(root) / "model.onnx"
    key = {"file": digest.of_file(file), "model": digest.of_file(original), "machine": environment.cpu_name()}
    return cells.once(cell_path(root, model, batch), key, lambda: _profile(root, model, original, file, batch))


def cell_path(root: Path, model: Model, batch: int) -> Path:
    """Where the cell stands."""
    return root / "cells" / model.name / f"profile-{batch}.json"


def _profile(root: Path, model: Model, original: Path, file: Path, batch: int) -> Cell:
    inputs = feeds(model.folder(root), batch)[batch]
    before, after = (
        ort_kernels.kernels(path, onnx.load_model(str(path)), inputs, 1, _SECONDS) for path in (original, file)
    )
    return {
        "file": digest.of_file(file),
        "float_ms": sum(kernel.milliseconds for kernel in before),
        "int8_ms": sum(kernel.milliseconds for kernel in after),
        "layers_ms": sum(k.milliseconds for k in after if any(name in k.operator for name in _LAYERS)),
    }
