"""The task's losses by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...benches.metrics.class_metrics import class_misfit, position_misfit
from ...core.errors import DataError, RecipeError, TaskError
from ...core.tables import resolve
from ...core.task import Task
from ...exporters.sessions.torch_session import forward
from ..task_file import run_user_code

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Tensors = Mapping[str, torch.Tensor]
Draw = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedLoss:
    """A loss `(output, labels) -> scalar`, and whether the output is a row of logits."""

    hard: Loss
    classes: bool = False
    as_label: Callable[[torch.Tensor], torch.Tensor] = lambda output: output  # a teacher's output in a label's place
    draw: Draw | None = None  # labels as likely as an output says they are; None: of logits a class, else not known
    misfit: Callable[[np.ndarray, np.ndarray], str] = lambda output, labels: ""  # (output, labels) -> what does not fit

    @property
    def drawn(self) -> Draw | None:
        """See `draw`."""
        return _class if self.draw is None and self.classes else self.draw


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """With classes in any type of integers, or a probability for each, as a label."""
    weights = None if weights is None else weights.to(logits)
    return functional.cross_entropy(logits, labels if labels.is_floating_point() else labels.long(), weights)


def _class_misfit(output: np.ndarray, labels: np.ndarray) -> str:
    if labels.dtype.kind == "f" and labels.shape == output.shape:
        return ""
    return (position_misfit if output.ndim > 2 else class_misfit)(output, labels)


def _number_misfit(output: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor) -> str:
    sizes = [[size for size in array.shape[1:] if size > 1] for array in (output, labels)]
    if sizes[0] == sizes[1]:
        return ""
    return f"labels {tuple(labels.shape)} are not those of an output {tuple(output.shape)}"


def _of_numbers(loss: Loss) -> Loss:
    """With labels `(N,)` taken as those of an output `(N, 1)`, or the other way round; torch compares each with all.

    The labels may be of any type of numbers.
    """

    def compared(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if text := _number_misfit(output, labels):
            raise DataError(text)
        output = output.to(torch.promote_types(output.dtype, torch.float32))  # half precision would round the labels
        return loss(output, labels.to(output.dtype).reshape(output.shape))

    return compared


@_of_numbers
def _binary(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Several labels for each sample: logits and labels (0, 1 or between) `(N, K)`."""
    return functional.binary_cross_entropy_with_logits(output, labels)


def _class(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of the softmax of `(N, C, ...)`: `(N, ...)`."""
    rows = functional.softmax(logits.movedim(1, -1), dim=-1).cpu()
    drawn = torch.multinomial(rows.reshape(-1, rows.shape[-1]), 1, generator=generator)
    return drawn.reshape(rows.shape[:-1]).to(logits.device)


def _yes_or_no(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.bernoulli(torch.sigmoid(logits).cpu(), generator=generator).to(logits)


def _number(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of a normal distribution around it, with variance 1."""
    return output + torch.randn(output.shape, generator=generator).to(output)


LOSSES: dict[str, NamedLoss] = {
    "cross-entropy": NamedLoss(hard=_cross_entropy, classes=True, misfit=_class_misfit),
    "binary-cross-entropy": NamedLoss(hard=_binary, as_label=torch.sigmoid, draw=_yes_or_no, misfit=_number_misfit),
    "mse": NamedLoss(hard=_of_numbers(functional.mse_loss), draw=_number, misfit=_number_misfit),
    "l1": NamedLoss(hard=_of_numbers(functional.l1_loss), draw=_number, misfit=_number_misfit),
    "huber": NamedLoss(hard=_of_numbers(functional.huber_loss), draw=_number, misfit=_number_misfit),
}


def named_loss(task: Task, said: str = "") -> NamedLoss:
    """The task's loss; of a function of the user's own it is not known whether it speaks of classes.

    Args:
        task: names it.
        said: what stands in front of an error of the user's own; empty: "task 'digits': loss".

    Raises:
        RecipeError: a name that is in no table.
    """
    where = f"task '{task.name}': loss"
    if isinstance(task.loss, str):
        return resolve(task.loss, LOSSES, where)
    return NamedLoss(hard=of_users(task.loss, said or where))


def of_users(loss: Callable[..., Any], where: str) -> Callable[..., torch.Tensor]:
    """What the loss raises names the user's line, and what it returns is one number that gradients come from."""

    def checked(*given: Any) -> torch.Tensor:
        value = run_user_code(lambda: loss(*given), where)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return value.reshape(())
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TaskError(f"{where} returned {found}; return a tensor of one number, such as the mean over samples")

    return checked


def _weighted(weights: torch.Tensor) -> Loss:
    return lambda output, labels: _cross_entropy(output, labels, weights)


def loss_of_answers(
    task: Task, weights: torch.Tensor | None = None
) -> Callable[[Tensors, torch.Tensor | None], torch.Tensor]:
    """(outputs, labels) -> scalar: the task's loss on its first output, of the first `len(labels)` samples.

    Args:
        task: names the loss.
        weights: of each class, `(classes,)`; for cross-entropy alone.
    """
    loss = named_loss(task).hard if weights is None else _weighted(weights)

    def objective(outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            raise RecipeError(f"task '{task.name}': this stage needs labels, and the 'train' split has none")
        answers = outputs[task.outputs[0]]
        return loss(answers[: len(labels)], labels) if len(labels) else 0 * answers.sum()

    return objective


def task_loss(
    task: Task, weights: torch.Tensor | None = None
) -> Callable[[nn.Module, Tensors, torch.Tensor | None], torch.Tensor]:
    """(module, inputs, labels) -> scalar; see `loss_of_answers`."""
    loss = loss_of_answers(task, weights)
    return lambda module, inputs, labels: loss(forward(module, inputs, task.outputs), labels)
