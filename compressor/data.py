"""Batches of a task's splits as tensors, and what is done with plain passes over data."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ..core.task import Split, Task
from ..exporters.torch_session import to_tensors
from .stage import Context


def sample_indices(split: Split, count: int) -> np.ndarray:
    """`count` different indices (all, if there are fewer), drawn over the whole split, the same in every run."""
    return np.random.default_rng(0).permutation(len(split))[:count]


def batches(
    context: Context, split_name: str, samples: int, batch_size: int
) -> Iterator[tuple[Mapping[str, torch.Tensor], torch.Tensor | None]]:
    """Some samples of a split as device tensors, in batches."""
    split = context.task.split(split_name, context.where)
    indices = sample_indices(split, samples)
    for start in range(0, len(indices), batch_size):
        inputs, labels = split.batch(indices[start : start + batch_size])
        device = context.machine.device
        yield to_tensors(inputs, device), None if labels is None else torch.tensor(labels, device=device)


def calibration_split(task: Task) -> str:
    """The split that ranges and statistics come from: `calibration`, or `train` where the task sets none."""
    return "train" if task.calibration is None else "calibration"


def any_inputs(task: Task, count: int = 16) -> dict[str, np.ndarray]:
    """Some real inputs to trace, check and time a model with; from the test split only where the task has no other."""
    split = next(
        s for s in (task.validation, task.train, task.calibration, task.unlabelled, task.test) if s is not None
    )
    return split.batch(np.arange(count) % len(split))[0]


class _TakesMapping(nn.Module):
    """Lets `update_bn` feed a model of several inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> object:
        return self.module(*inputs.values())


def reestimate_batch_norm(module: nn.Module, context: Context, samples: int, batch_size: int) -> None:
    """Replace batch-norm statistics by those of the changed network, in place (torch's `update_bn`)."""
    device = context.machine.device
    inputs = [inputs for inputs, _ in batches(context, calibration_split(context.task), samples, batch_size)]
    full = [batch for batch in inputs if len(next(iter(batch.values()))) > 1]  # one sample has no variance
    torch.optim.swa_utils.update_bn(full, _TakesMapping(module.to(device)))
    module.cpu().eval()
