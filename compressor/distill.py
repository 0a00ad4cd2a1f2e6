"""Distillation: a teacher's outputs teach a student, beside the labels or without them (Hinton et al., 2015)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ..core.errors import DataError, RecipeError
from ..core.task import Task
from ..core.values import Session
from ..exporters.ort_session import OnnxRuntimeSession
from ..exporters.torch_session import forward
from .candidate import Candidate
from .losses import distillation, named_loss
from .stage import Context, Graph, Probe, Stage
from .training import Objective, Training, require_training_data, train
from .training_data import TrainingData

Teacher = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Training, Stage):
    """`L = loss(y, s) + weight * T^2 * KL(t || s)`; for regression `loss(y, s) + weight * loss(t, s)`."""

    name: ClassVar[str] = "distill"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    teacher: str = "original"  # "original", the id of an earlier stage, or a name in the task's models
    student: str | None = None  # a name in the task's models; None: what the stage before gives
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(gt=0)] = 1.0  # lambda

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        self.check_training(task, where)
        named_loss(task)
        require_training_data(task, where, labels=False)
        if self.student is not None and self.student not in task.models:
            known = ", ".join(sorted(task.models)) or "none"
            raise RecipeError(f"{where}.student: '{self.student}' is not in the task's models; known: {known}")

    def needs(self) -> tuple[str, ...]:
        """See `Stage.needs`."""
        return (self.teacher,) if self.student is None else (self.teacher, self.student)

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: a student of its own takes the place of what came before."""
        return value if self.student is None else self._student(context)

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        samples = sum(len(split) for split in (task.train, task.unlabelled) if split is not None)
        return self.training_seconds(samples, dataclasses.replace(probe, forward=2 * probe.forward))

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        value = value if self.student is None else self._student(context)
        module = value.module()
        objective = taught_by(self.teacher, self.weight, self.temperature, context)
        result = train(module, TrainingData(context.task.train, context.task.unlabelled), objective, self, context)
        context.notes.append(f"taught by {self.teacher}, best epoch {result.best_epoch} of {result.epochs}")
        return Candidate.of(module, value)

    def _student(self, context: Context) -> Candidate:
        assert self.student is not None
        student = context.named(self.student)
        if isinstance(student, Graph):
            raise RecipeError(f"{context.where}.student: '{self.student}' is an ONNX file and cannot be trained")
        return student


def taught_by(name: str, weight: float, temperature: float, context: Context) -> Objective:
    """What `Distill` minimises, with the model called `name` as the teacher (see `Context.named`)."""
    loss, output = named_loss(context.task), context.task.outputs[0]
    teacher = open_teacher(context.named(name), context)

    def objective(
        model: nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None, labelled: int
    ) -> torch.Tensor:
        answers = forward(model, inputs, context.task.outputs)[output]
        target = teacher(inputs)
        if target.shape != answers.shape:
            raise DataError(
                f"{context.where}: output '{output}' is {tuple(answers.shape)} for the student, "
                f"{tuple(target.shape)} for teacher '{name}'; they must agree"
            )
        return distillation(answers, target, labels, labelled, loss, weight, temperature)

    return objective


def open_teacher(model: Candidate | Graph, context: Context) -> Teacher:
    """A function from input tensors to the first output, without gradients."""
    outputs = context.task.outputs
    if isinstance(model, Candidate):
        module = model.module().to(context.machine.device).eval()

        def ask_module(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with torch.no_grad():
                return forward(module, inputs, outputs)[outputs[0]].float()

        return ask_module
    session: Session = OnnxRuntimeSession(model.path, device=context.machine.device)
    names = [spec.name for spec in session.outputs]
    if outputs[0] not in names:
        raise RecipeError(
            f"{context.where}.teacher: {model.path} has the outputs {names}, but the task's first is '{outputs[0]}'"
        )

    def ask_session(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        device = next(iter(inputs.values())).device
        answers = session.run({name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        return torch.tensor(answers[outputs[0]], device=device)

    return ask_session
