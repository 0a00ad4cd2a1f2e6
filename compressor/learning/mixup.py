"""Mixtures of two samples, about which a teacher is asked in place of the samples themselves."""

from collections.abc import Mapping

import torch
from torch import nn

from ...core.errors import RecipeError
from ...core.task import Task
from .training import Objective


def check_mixable(task: Task, where: str) -> None:
    """Refuse inputs of which no mean can be taken.

    Raises:
        RecipeError: an input is not of floating-point numbers.
    """
    for spec in task.input_specs():
        if not spec.dtype.startswith("float"):
            raise RecipeError(f"{where}.mixup: a mean of two samples is no sample where '{spec.name}' is {spec.dtype}")


def mixtures(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`l * x + (1 - l) * x'` of every sample with another one of its batch, all inputs `(N, ...)` with the same `l`.

    As mixup does (Zhang et al., ICLR 2018), but `l` is drawn for each sample, evenly from 0 to 1, by torch's generator.
    """
    count, device = next((len(tensor), tensor.device) for tensor in inputs.values())
    share, order = torch.rand(count).to(device), torch.randperm(count).to(device)
    other = torch.empty_like(order).index_copy_(0, order, order.roll(1))  # a circle: nobody is mixed with itself

    def mixed(tensor: torch.Tensor) -> torch.Tensor:
        return torch.lerp(tensor[other], tensor, share.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1)))

    return {name: mixed(tensor) for name, tensor in inputs.items()}


def on_mixtures(objective: Objective) -> Objective:
    """What an objective says of mixtures, which have no labels: the teachers' part of it."""

    def mixed(
        model: nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None, labelled: int
    ) -> torch.Tensor:
        return objective(model, mixtures(inputs), None, 0)

    return mixed
