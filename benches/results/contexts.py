"""What a stage is given when a bench runs it by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Context, Graph, Machine
from edgesmith.core.task import Task


def alone(task: Task, work: Path, where: str, named: Callable[[str], Candidate | Graph], **more: Any) -> Context:
    """On this machine's CPU, for ONNX Runtime, unless `more` says otherwise."""
    given: dict[str, Any] = {"machine": Machine(), "targets": ("onnxruntime-cpu",), "progress": Progress()} | more
    return Context(task=task, work=work, where=where, named=named, **given)
