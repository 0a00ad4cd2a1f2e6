"""Training on the task's own labels."""

import dataclasses
from typing import ClassVar, Literal

from ..core.task import Task
from .candidate import Candidate
from .losses import named_loss, task_loss
from .stage import Context, Probe, Stage
from .training import Training, require_training_data, train
from .training_data import TrainingData


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(Training, Stage):
    """Train the candidate further with the task's loss; the best epoch on validation is kept."""

    name: ClassVar[str] = "finetune"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        self.check_training(task, where)
        named_loss(task)
        require_training_data(task, where, labels=True)

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        return self.training_seconds(task, len(task.split("train", self.name)), probe)

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        module = value.module()
        loss = task_loss(context.task)
        data = TrainingData(context.task.split("train", context.where))
        result = train(module, data, lambda m, inputs, labels, labelled: loss(m, inputs, labels), self, context)
        context.notes.append(result.note())
        return Candidate.of(module, value)
