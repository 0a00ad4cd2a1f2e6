"""What the templates of a generated `task.py` read: imports, paths and words that follow from the user's model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .starter_data import Data, Sizes
from .starter_sources import Source


def task_context(source: Source, data: Data, sizes: Sizes, folder: Path, name: str) -> Mapping[str, Any]:
    """What the task's template reads."""
    probed, architecture, weights = source.probed, source.architecture, source.weights
    wrapped = source.kind == "huggingface" or (source.kind == "torch" and probed.wrapped)
    attribute = source.huggingface_class if architecture is None else architecture.attribute
    root = architecture.root if architecture else None
    return {
        "title": one_line(source.reference),
        "name": name,
        "imports": _imports(source, wrapped),
        "root": _relative(root, folder),
        "import_module": architecture.module if architecture else "transformers",
        "import_attribute": attribute,
        "wrapped": wrapped,
        "answer_words": "logits" if probed.problem != "numbers" else "predictions",
        "network": "model.network" if wrapped else "model",
        "data": _relative(data.path, folder),
        "data_name": one_line(data.path.name),
        "test_data": _relative(data.test.path, folder) if data.test and data.kept_in == "files" else "",
        "weights": weights,
        "weights_path": _relative(weights.path if weights else None, folder),
        "model_path": _relative(source.path, folder),
        "probed": probed,
        "inputs": probed.inputs,
        "sizes": sizes,
        "kept_in": data.kept_in,
        "has_labels": data.labels is not None,
        "label_cast": _label_cast(source, data),
        "agreement": source.agreement,
        "train_split": "calibration" if source.kind == "onnx" else "train",
        "train_use": "find ranges with" if source.kind == "onnx" else "train",
        "loss": "mse" if probed.problem == "numbers" else "cross-entropy",
        "metric": metric_name(source),
        "metric_code": _metric_code(source),
    }


def metric_name(source: Source) -> str:
    """The metric that counts, by what the labels are."""
    if source.agreement == "closeness":
        return "distance-from-original"
    return {"classes": "accuracy", "dense": "miou", "numbers": "mae"}[source.probed.problem]


def _metric_code(source: Source) -> str:
    if source.agreement == "closeness":
        return "CLOSENESS"
    name = metric_name(source)
    if not source.probed.pick:
        return f'"{name}"'
    return f'dataclasses.replace(METRICS["{name}"], output={quote(source.probed.outputs[0])})'


def _imports(source: Source, wrapped: bool) -> list[str]:
    """Import lines in the order that linters want."""
    weights, architecture = source.weights, source.architecture
    lines = ["import edgesmith", "import numpy as np"]
    if source.agreement:
        lines.append("import onnxruntime")
    needs_torch = wrapped or (weights is not None and weights.form == "torch")
    lines += ["import torch"] if needs_torch else []
    froms = []
    if source.kind == "onnx" and source.probed.pick:
        froms.append("from edgesmith.benches.metrics.metrics import METRICS")
    if weights is not None and weights.form == "safetensors":
        once = weights.tied and not weights.prefix
        froms.append(f"from safetensors.torch import {'load_model' if once else 'load_file'}")
    if wrapped or (weights is not None and weights.path):
        froms.append("from torch import nn")
    if source.kind == "huggingface":
        froms.append(f"from transformers import {', '.join(sorted(['AutoConfig', source.huggingface_class]))}")
    if architecture is not None and architecture.root is None:
        froms.append(f"from {architecture.module} import {architecture.attribute}")
    standard = ["import dataclasses"] if source.kind == "onnx" and source.probed.pick else []
    standard += ["import sys"] if architecture is not None and architecture.root is not None else []
    return [*standard, "from pathlib import Path", "", *lines, *sorted(froms)]


def _label_cast(source: Source, data: Data) -> str:
    if data.labels is None:
        return ""
    wanted = "float32" if data.labels.dtype.kind == "f" else "int64"
    cast = "" if str(data.labels.dtype) == wanted else f".astype(np.{wanted})"
    shape = source.probed.label_shape
    return cast if shape is None else f"{cast}.reshape({', '.join(map(str, (-1, *shape)))})"


def _relative(path: Path | None, folder: Path) -> str:
    return "" if path is None else Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def quote(text: str) -> str:
    """A user's string as a literal that Python and TOML both read."""
    return json.dumps(text, ensure_ascii=False)


def one_line(text: str) -> str:
    """A user's string as one line of a comment or docstring."""
    return "".join(char if char.isprintable() and char not in '"\\' else "_" for char in text)
