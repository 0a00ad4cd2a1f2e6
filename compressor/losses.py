"""The task's losses by name."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from ..core.errors import RecipeError
from ..core.tables import resolve
from ..core.task import Task
from ..exporters.torch_session import forward

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedLoss:
    """A loss `(output, labels) -> scalar`, and whether the output is a row of logits."""

    hard: Loss
    classes: bool = False


LOSSES: dict[str, NamedLoss] = {
    "cross-entropy": NamedLoss(hard=functional.cross_entropy, classes=True),
    "mse": NamedLoss(hard=functional.mse_loss),
    "l1": NamedLoss(hard=functional.l1_loss),
    "huber": NamedLoss(hard=functional.huber_loss),
}


def named_loss(task: Task) -> NamedLoss:
    """The task's loss; of a function of the user's own it is not known whether it speaks of classes.

    Raises:
        RecipeError: a name that is in no table.
    """
    if isinstance(task.loss, str):
        return resolve(task.loss, LOSSES, f"task '{task.name}': loss")
    return NamedLoss(hard=task.loss)


def task_loss(task: Task) -> Callable[[nn.Module, Tensors, torch.Tensor | None], torch.Tensor]:
    """(module, inputs, labels) -> scalar: the task's loss on its first output, of the first `len(labels)` samples."""
    loss = named_loss(task).hard

    def objective(module: nn.Module, inputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            raise RecipeError(f"task '{task.name}': this stage needs labels, and the 'train' split has none")
        answers = forward(module, inputs, task.outputs)[task.outputs[0]]
        return loss(answers[: len(labels)], labels) if len(labels) else 0 * answers.sum()

    return objective
