"""What no training could start with, said before any work."""

import numpy as np
import torch

from ...core.errors import DataError, RecipeError
from ...core.task import has_label
from ...exporters.sessions.torch_session import forward, to_tensors
from ..candidate import Candidate
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
