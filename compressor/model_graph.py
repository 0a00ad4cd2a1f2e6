"""A model of the task's that is no torch module: an ONNX file, or a fitted scikit-learn estimator, as an ONNX graph."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from ..core.errors import TaskError
from ..core.task import Task
from ..exporters import from_sklearn
from ..exporters.graph import onnx_file
from ..exporters.sessions.ort_session import OnnxRuntimeSession
from .data import any_inputs

PICKLES = (".pkl", ".pickle", ".joblib", ".sav")


def graph_of(model: Any, task: Task, name: str) -> onnx.ModelProto:
    """The model called `name` in the task, or "original".

    Raises:
        ArtifactError, TaskError, ExportError: a file that cannot be read, a pickle, an estimator that has no such form.
    """
    where = f"task '{task.name}': {name} model"
    if from_sklearn.is_estimator(model):
        return from_sklearn.convert(model, task.input_specs(), task.outputs[0], any_inputs(task), where)
    if Path(model).suffix in PICKLES:
        raise TaskError(
            f"{where}: '{model}' is a pickle, which runs whatever code it holds when it is opened, so none is opened; "
            "give the fitted estimator itself in the task, or an ONNX file"
        )
    return onnx_file.load(Path(model))


@contextlib.contextmanager
def opened(model: Any, task: Task, name: str, device: str = "cpu") -> Iterator[OnnxRuntimeSession]:
    """The same in ONNX Runtime.

    Raises:
        ArtifactError, TaskError, ExportError: see `graph_of`.
    """
    with tempfile.TemporaryDirectory(prefix="edgesmith-model-") as folder:
        path = Path(folder) / "model.onnx" if from_sklearn.is_estimator(model) else Path(model)
        graph = graph_of(model, task, name)  # refuses a truncated or hostile file before a runtime sees it
        if path.parent == Path(folder):
            onnx_file.save(graph, path)
        session = OnnxRuntimeSession(path, device=device)
        try:
            yield session
        finally:
            session.close()
