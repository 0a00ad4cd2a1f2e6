"""What no training could start with, said before any work."""

import numpy as np
import torch
from torch import nn

from ...benches.metrics.class_metrics import range_misfit
from ...core.errors import DataError, RecipeError
from ...core.task import NO_LABEL, ArraySplit, Split, has_label
from ...exporters.sessions.torch_session import forward, to_tensors
from ..candidate import Candidate
from ..data import any_inputs
from ..stage import Context
from ..task_file import look, run_user_code
from .losses import named_loss


def check_learns(value: Candidate, where: str) -> None:
    """Refuse a network of which nothing would learn.

    Raises:
        RecipeError: it has no parameter, or all were frozen by the function that builds it.
    """
    parameters = list(value.module().parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        why = "all are frozen by the task's model function" if parameters else "the network has none"
        raise RecipeError(f"{where}: no parameter would learn: {why}")


def check_labels(value: Candidate, context: Context) -> None:
    """Refuse training labels that the task's loss cannot take for what the network answers.

    Raises:
        DataError: they have another type or shape, or are of a class that it does not know.
    """
    task = context.task
    inputs, labels = (None, None) if task.train is None else look(task.train)
    labels = None if labels is None else labels[has_label(labels)]
    if inputs is None or labels is None or not len(labels):
        return
    some = to_tensors({name: array[:2] for name, array in inputs.items()}, "cpu")
    with torch.no_grad():
        where = f"{context.where}: the network, on the 'train' split,"
        answers = run_user_code(lambda: forward(value.module(), some, task.outputs)[task.outputs[0]], where)
    answers = answers.float().numpy()
    text = named_loss(task).misfit(np.broadcast_to(answers[:1], (len(labels), *answers.shape[1:])), labels)
    if text:
        raise DataError(f"task '{task.name}': 'train' split: loss '{task.loss}': {text}")


def classes_of(module: nn.Module, context: Context) -> int:
    """How many classes the first output tells apart: its second axis."""
    device = next(module.parameters()).device
    inputs = to_tensors(any_inputs(context.task, 2), device)
    with torch.no_grad():
        return int(forward(module.eval(), inputs, context.task.outputs)[context.task.outputs[0]].shape[1])


def in_range(split: Split | None, module: nn.Module, context: Context) -> Split | None:
    """The split, whose labels are looked at as they are read: `check_labels` has seen some of them alone.

    A class that the network does not know ends a training with an error; on CUDA it would end the process.
    """
    if split is None or isinstance(split, ArraySplit) or not named_loss(context.task).classes:
        return split
    return _InRange(split, classes_of(module, context), context)


class _InRange:
    """Raises DataError when it reads a label that is no class."""

    def __init__(self, split: Split, classes: int, context: Context) -> None:
        self._split, self._classes, self._context = split, classes, context

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """See `Split.batch`."""
        inputs, labels = self._split.batch(indices)
        known = np.zeros(0) if labels is None or labels.dtype.kind == "f" else labels[labels != NO_LABEL]
        if len(known) and (text := range_misfit(self._classes, known)):
            task = self._context.task
            raise DataError(f"task '{task.name}': 'train' split: loss '{task.loss}': {text}")
        return inputs, labels
