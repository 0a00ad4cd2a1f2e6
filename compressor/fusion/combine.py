"""Combination: models with outputs of their own side by side in one graph that reads its input once."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...benches.metrics import accuracy
from ...core import digest
from ...core.errors import ContractError, RecipeError
from ...core.task import Task
from ...exporters.graph import compose, onnx_file
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from ..evaluation import BATCH
from ..stage import Context, Graph, Probe, Stage
from .member_graphs import member_graphs
from .preparation import Preparation, check_prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combine(Stage):
    """Put models with different outputs into one ONNX graph: shared inputs, every output under its name."""

    name: ClassVar[str] = "combine"
    accepts: ClassVar[Literal["candidate", "graph", "nothing"]] = "nothing"
    returns: ClassVar[Literal["candidate", "graph"]] = "graph"

    heads: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # member -> names of its outputs
    prepare: Mapping[str, Preparation] = dataclasses.field(default_factory=dict)  # member -> what its input becomes

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        if len(self.heads) < 2:
            raise RecipeError(f"{where}.heads: combining takes at least two models; got {list(self.heads)}")
        givers: dict[str, str] = {}
        for member, names in self.heads.items():
            if not names:
                raise RecipeError(f"{where}.heads: '{member}' gives no output; name one, or leave it out")
            for name in names:
                if name in givers:
                    raise RecipeError(
                        f"{where}.heads: '{name}' is an output of '{givers[name]}' and of '{member}'; each needs a "
                        "name of its own, and what is said of one thing by several models is fused instead"
                    )
                givers[name] = member
        inputs = {spec.name for spec in task.input_specs()}
        if inputs & set(givers):
            raise RecipeError(f"{where}.heads: '{min(inputs & set(givers))}' is the name of an input")
        missing = [name for name in task.outputs if name not in givers]
        if missing:
            raise RecipeError(f"{where}.heads: no model gives the task's output '{missing[0]}'")
        check_prepare(self.prepare, tuple(self.heads), task.input_specs(), where)
        task.split("validation", where)

    def needs(self) -> tuple[str, ...]:
        """See `Stage.needs`."""
        return tuple(self.heads)

    def rehearse(self, value: Any, context: Context) -> Graph:
        """See `Stage.rehearse`."""
        return Graph(path=Path(), digest="")

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        samples = len(task.split("validation", self.name))
        return 2.0 + sum(probe.export + 2 * samples * probe.named(name) for name in self.heads)

    def run(self, value: Any, context: Context) -> Graph:
        """See `Stage.run`."""
        graphs = member_graphs(tuple(self.heads), context, self.heads, self.prepare)
        made = {}
        for member, model in graphs.items():
            for spec in onnx_file.specs(model)[1]:
                made[spec.name] = f"{member}/{spec.name}", dataclasses.replace(spec, shape=("batch", *spec.shape[1:]))
        first = [*context.task.outputs, *(name for name in made if name not in context.task.outputs)]
        outputs = dict(made[name] for name in first)
        model = compose.joined(graphs, context.task.input_specs(), compose.Nodes("combine"), outputs)
        path = context.work / "model.onnx"
        onnx_file.save(model, path)
        self._compare(path, graphs, context)
        return Graph(path=path, digest=digest.of_file(path))

    def _compare(self, path: Path, graphs: Mapping[str, Any], context: Context) -> None:
        """Every output is what its model alone gives for the validation samples."""
        together = _outputs(path, context)
        for member, model in graphs.items():
            alone_path = context.work / f"member-{member}.onnx"
            onnx_file.save(model, alone_path)
            for name, alone in _outputs(alone_path, context).items():
                both = alone.astype(np.float64), together[name].astype(np.float64)
                difference = float(np.abs(both[0] - both[1]).max(initial=0.0))
                if not difference <= 1e-4 * max(1.0, float(np.abs(both[0]).max(initial=0.0))):
                    raise ContractError(
                        f"{context.where}: '{name}' of '{member}' differs in the combined graph by up to "
                        f"{difference:.3g}, or is no number"
                    )
        listed = ", ".join(f"{name} of {member}" for member, names in self.heads.items() for name in names)
        context.notes.append(f"outputs: {listed}; each as its model alone gives it, on all validation samples")


def _outputs(path: Path, context: Context) -> dict[str, np.ndarray]:
    session = OnnxRuntimeSession(path, device=context.machine.device)
    try:
        return accuracy.predict(session, context.task.split("validation", context.where), BATCH)
    finally:
        session.close()
