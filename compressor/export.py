"""From the torch side to the ONNX side."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from ..core import digest
from ..core.task import Task
from ..exporters import from_torch
from .candidate import Candidate
from .data import any_inputs
from .stage import Context, Graph, Probe, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Write the candidate as ONNX with a dynamic batch axis, and prove that it computes what torch computes."""

    name: ClassVar[str] = "export"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "graph"

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        return probe.export

    def run(self, value: Candidate, context: Context) -> Graph:
        """See `Stage.run`."""
        made = to_graph(value, context.task, context.work) if context.exported is None else context.exported()
        batches = ", ".join(map(str, from_torch.CHECKED_BATCHES))
        context.notes.append(f"agrees with torch at batch sizes {batches}")
        return made


def to_graph(value: Candidate, task: Task, folder: Path) -> Graph:
    """The candidate as `model.onnx` in a folder, checked against torch.

    Raises:
        ExportError: torch cannot export the model, or the file's outputs differ.
    """
    path = folder / "model.onnx"
    from_torch.export(value.module(), any_inputs(task), task.input_specs(), task.outputs, path)
    return Graph(path=path, digest=digest.of_file(path))
