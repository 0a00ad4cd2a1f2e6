"""What the tests of quantizing stages ask of a result: its files, and how well they do."""

from pathlib import Path

from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.stage import Graph
from edgesmith.core.task import Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.target import Target


def file_of(graph: Graph, target: Target, folder: Path) -> Path:
    """The INT8 file in the target's first dialect; it has passed the target's lint."""
    model = canonicalise(onnx_file.load(graph.path))
    artifact = target.write(model, graph.params, target.dialects()[0], folder / f"{target.name}.onnx")
    return artifact.path


def accuracy_of(path: Path, task: Task) -> float:
    session = OnnxRuntimeSession(path)
    return evaluate(session, task.split("validation", "test"), task_metrics(task))["accuracy"]
