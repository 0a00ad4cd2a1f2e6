"""Losses by name, what a soft target means for each, and the distillation objective."""

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


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`T^2 * KL(t || s)` of softened logits `(N, classes, ...)` (Hinton et al., 2015).

    The factor keeps the gradient's size when T changes; the mean is over samples and positions.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * divergence.mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedLoss:
    """A loss `(output, labels) -> scalar`, and how a student follows a teacher's output under it."""

    hard: Loss
    soft: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]  # (student, teacher, temperature) -> scalar


def _regression(loss: Loss) -> NamedLoss:
    """For regression a teacher's output is a label: the temperature has no meaning."""
    return NamedLoss(hard=loss, soft=lambda student, teacher, temperature: loss(student, teacher))


LOSSES: dict[str, NamedLoss] = {
    "cross-entropy": NamedLoss(hard=functional.cross_entropy, soft=soft_cross_entropy),
    "mse": _regression(functional.mse_loss),
    "l1": _regression(functional.l1_loss),
    "huber": _regression(functional.huber_loss),
}


def named_loss(task: Task) -> NamedLoss:
    """The task's loss; a function of the user's own follows a teacher as regression does.

    Raises:
        RecipeError: a name that is in no table.
    """
    if isinstance(task.loss, str):
        return resolve(task.loss, LOSSES, f"task '{task.name}': loss")
    return _regression(task.loss)


def task_loss(task: Task) -> Callable[[nn.Module, Tensors, torch.Tensor | None], torch.Tensor]:
    """(module, inputs, labels) -> scalar: the task's loss on its first output."""
    loss = named_loss(task).hard

    def objective(module: nn.Module, inputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            raise RecipeError(f"task '{task.name}': this stage needs labels, and the 'train' split has none")
        return loss(forward(module, inputs, task.outputs)[task.outputs[0]], labels)

    return objective


def distillation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor | None,
    labelled: int,
    loss: NamedLoss,
    weight: float,
    temperature: float,
) -> torch.Tensor:
    """`L = loss(y, s) + weight * soft(t, s)`; the first `labelled` samples have labels, the others the soft part alone.

    Args:
        student, teacher: outputs `(N, ...)`.
        labels: `(labelled, ...)`, or None where there are none.
    """
    soft = loss.soft(student, teacher, temperature)
    if labels is None or labelled == 0:
        return weight * soft
    # The hard part is a mean over all samples of which only some have labels, so that both parts weigh per sample.
    return loss.hard(student[:labelled], labels) * (labelled / len(student)) + weight * soft
