"""Not forgetting: what a training on a new task adds to its loss, so that the network stays good at the old one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ...core.errors import RecipeError, TaskError
from ...core.task import Task
from ...exporters.sessions.torch_session import copied
from ..candidate import Candidate
from ..data import batches
from ..fusion.merge_statistics import fisher
from ..stage import Context
from .distillation import measure_of, soft_part
from .losses import named_loss
from .padding import standing
from .teaching import open_teacher

Tensors = Mapping[str, torch.Tensor]
Keeper = Callable[[Tensors, Tensors], torch.Tensor]  # (inputs, the network's outputs) -> scalar, added to the loss
_TEMPERATURE = 2.0  # of lwf, as in the paper
_WEIGHTS = {"lwf": 1.0, "ewc": 1000.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepKeys:
    """Recipe keys for a network that is still to do its old task, `Task.old`, after it has learnt a new one."""

    keep: Literal["lwf", "ewc"] | None = None
    keep_weight: Annotated[float, Field(gt=0)] | None = None  # of what it adds to the loss; None: 1 for lwf, 1000 ewc
    keep_samples: Annotated[int, Field(ge=1)] = 256  # of the old task's training data, which ewc reads

    def check_keep(self, adapter: str | None, task: Task, where: str) -> None:
        """Refuse keys that nothing reads, and a task that does not say what the old one was.

        Raises:
            RecipeError, TaskError: names the key, or what the task lacks.
        """
        if self.keep_samples != KeepKeys.keep_samples and self.keep != "ewc":
            raise RecipeError(f'{where}.keep_samples: only keep = "ewc" reads it')
        if self.keep is None:
            if self.keep_weight is not None:
                raise RecipeError(f"{where}.keep_weight: nothing reads it without keep")
            return
        if task.old is None:
            raise TaskError(
                f"task '{task.name}': {where}.keep has to know the old task; set old= to the Task that it was"
            )
        if self.keep == "ewc":
            if adapter is not None:
                raise RecipeError(
                    f"{where}.keep: 'ewc' holds the weights themselves, and with adapter '{adapter}' those do not "
                    'move; use keep = "lwf", or leave adapter out'
                )
            task.old.split("train", f"{where}.keep: the Fisher information of the old task")

    def keeper(self, module: nn.Module, value: Candidate, context: Context) -> Keeper | None:
        """What is added to the loss of `module`, which starts as `value`; None: nothing."""
        if self.keep is None:
            return None
        weight = self.keep_weight or _WEIGHTS[self.keep]
        if self.keep == "lwf":
            return without_forgetting(value, weight, context)
        return consolidated(module, value, weight, self.keep_samples, context)


def without_forgetting(value: Candidate, weight: float, context: Context) -> Keeper:
    """`weight * T^2 * KL` to the old network's answers on the new task's samples (LwF; Li & Hoiem, ECCV 2016, eq. 2).

    The paper has no `T^2`: a `weight` of 1 is its `lambda_o = 4`. No sample of the old task is needed. Where the old
    task's answers are no classes, its own loss compares them.
    """
    old, output = _old(context), _old(context).outputs[0]
    teacher = open_teacher(value, context, output)
    measure, loss = measure_of(None, {}, old, f"{context.where}.keep"), named_loss(old)

    def added(inputs: Tensors, answers: Tensors) -> torch.Tensor:
        target = teacher(copied(inputs))
        real = standing(inputs, target.shape[2:])
        return weight * soft_part(measure, answers[output], target, None, loss, _TEMPERATURE, real)

    return added


def consolidated(module: nn.Module, value: Candidate, weight: float, samples: int, context: Context) -> Keeper:
    """`weight / 2 * sum_i F_i (w_i - w*_i)^2` (EWC; Kirkpatrick et al., PNAS 2017, eq. 3).

    w* are the weights as the stage gets them, F is the diagonal of the Fisher information there, of the old task.
    """
    old, task, device = _old(context), context.task, context.machine.device
    start = value.module().to(device)
    seen = dataclasses.replace(context, task=dataclasses.replace(old, outputs=task.outputs))
    single = batches(seen, "train", samples, 1, labelled=not isinstance(old.loss, str))
    generator = torch.Generator().manual_seed(context.machine.seed)
    information = fisher(start, single, seen.task, old.outputs[0], generator)
    anchor = {name: start.get_parameter(name).detach() for name in information}

    def added(inputs: Tensors, answers: Tensors) -> torch.Tensor:
        moved = [(f * (module.get_parameter(name) - anchor[name]).square()).sum() for name, f in information.items()]
        return weight / 2 * torch.stack(moved).sum()

    return added


def _old(context: Context) -> Task:
    assert context.task.old is not None  # `check_keep` has seen to it
    return context.task.old
