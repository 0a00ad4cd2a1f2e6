"""Batches of a task's splits as tensors, and what is done with plain passes over data."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ..calibration import hygiene
from ..core import digest
from ..core.errors import TaskError
from ..core.task import Split, Task, has_label
from ..exporters.sessions.torch_session import to_tensor, to_tensors
from .stage import Context

_CHECKED_AT_ONCE = 256  # samples


def sample_indices(split: Split, count: int) -> np.ndarray:
    """`count` different indices (all, if there are fewer), drawn over the whole split, the same in every run."""
    return np.random.default_rng(0).permutation(len(split))[:count]


def batches(
    context: Context, split_name: str, samples: int, batch_size: int, labelled: bool = False
) -> Iterator[tuple[Mapping[str, torch.Tensor], torch.Tensor | None]]:
    """Some samples of a split as device tensors, in batches; with `labelled` only such as have a label.

    Raises:
        TaskError: `labelled`, and no sample has one.
    """
    split, device = context.task.split(split_name, context.where), context.machine.device
    indices, left = sample_indices(split, len(split) if labelled else samples), samples
    for start in range(0, len(indices), batch_size):
        inputs, labels = split.batch(indices[start : start + batch_size])
        if labelled and labels is not None:
            known = np.flatnonzero(has_label(labels))[:left]
            inputs, labels = {name: array[known] for name, array in inputs.items()}, labels[known]
        taken = len(next(iter(inputs.values())))
        if taken:
            yield to_tensors(inputs, device), None if labels is None else to_tensor(labels, device)
        left -= taken
        if left <= 0:
            return
    if left == samples:
        raise TaskError(
            f"task '{context.task.name}': {context.where} needs labels, and the '{split_name}' split has none"
        )


def calibration_split(task: Task) -> str:
    """The split that ranges and statistics come from: `calibration`, or `train` where the task sets none."""
    return "train" if task.calibration is None else "calibration"


def feeds(split: Split, indices: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """These samples as arrays, in batches."""
    for start in range(0, len(indices), batch_size):
        yield split.batch(indices[start : start + batch_size])[0]


def check_calibration(task: Task, samples: int, where: str) -> None:
    """Look at the calibration data before any work.

    Raises:
        TaskError: the task has none.
        DataError: NaN, a constant input, samples that the verdict is measured on; see `hygiene`.
    """
    if task.calibration is None:
        task.split("train", f"{where}: calibration (no 'calibration' split is set)")
    split = task.split(calibration_split(task), where)
    indices = sample_indices(split, samples)
    hygiene.check_samples(feeds(split, indices, _CHECKED_AT_ONCE))
    hygiene.check_overlap(sample_digests(split, indices), sample_digests(task.test, np.arange(len(task.test))))


def sample_digests(split: Split, indices: np.ndarray) -> list[str]:
    """One digest of the inputs of each of these samples."""
    return [name for feed in feeds(split, indices, _CHECKED_AT_ONCE) for name in digest.of_samples(feed)]


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


def has_variance(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether a batch norm can take its statistics from these: one sample has no variance."""
    return len(next(iter(inputs.values()))) > 1


def reestimate_batch_norm(module: nn.Module, context: Context, samples: int, batch_size: int) -> None:
    """Replace batch-norm statistics by those of the changed network, in place (torch's `update_bn`)."""
    device = context.machine.device
    inputs = [inputs for inputs, _ in batches(context, calibration_split(context.task), samples, batch_size)]
    full = [batch for batch in inputs if has_variance(batch)]
    torch.optim.swa_utils.update_bn(full, _TakesMapping(module.to(device)))
    module.cpu().eval()
