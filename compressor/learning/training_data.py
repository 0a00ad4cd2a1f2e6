"""Labelled and unlabelled samples as one sequence, in an order that depends on seed and epoch alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ...core.errors import DataError, TaskError
from ...core.task import Split, Task, has_label
from ...exporters.sessions.torch_session import to_tensor, to_tensors
from ..task_file import run_user_code

Augment = Callable[[dict[str, torch.Tensor], torch.Generator], dict[str, Any]]


class TrainingData:
    """Indices below `len(labelled)` are labelled samples, the others unlabelled ones."""

    def __init__(self, labelled: Split | None, unlabelled: Split | None = None) -> None:
        self._labelled, self._unlabelled = labelled, unlabelled
        self._count = 0 if labelled is None else len(labelled)
        self._total = self._count + (0 if unlabelled is None else len(unlabelled))

    def __len__(self) -> int:
        return self._total

    def steps(self, batch_size: int) -> int:
        """Batches per epoch; the incomplete last one is left out (another one each epoch)."""
        return batches_of(self._total, batch_size)

    def order(self, seed: int, epoch: int, batch_size: int) -> list[np.ndarray]:
        """The batches of an epoch as index arrays, labelled samples first in each."""
        permutation = np.random.default_rng((seed, epoch)).permutation(self._total)
        return [
            np.sort(permutation[step * batch_size : (step + 1) * batch_size]) for step in range(self.steps(batch_size))
        ]

    def batch(
        self, indices: np.ndarray, augment: Augment | None, seed: int, device: torch.device
    ) -> tuple[Mapping[str, torch.Tensor], torch.Tensor | None, int]:
        """Input tensors, labels of the labelled part (None where the split has none), and how many are labelled.

        Samples of the labelled split whose label is missing (see `has_label`) come after those that have one.
        """
        known, unknown = indices[indices < self._count], indices[indices >= self._count] - self._count
        parts: list[Mapping[str, np.ndarray]] = []
        labels = None
        if self._labelled is not None and len(known):
            inputs, labels = _labelled_first(*self._labelled.batch(known))
            parts.append(inputs)
        if self._unlabelled is not None and len(unknown):
            parts.append(self._unlabelled.batch(unknown)[0])
        tensors = to_tensors({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, "cpu")
        if augment is not None:
            tensors = _augmented(augment, tensors, torch.Generator().manual_seed(seed))
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        given = None if labels is None else to_tensor(labels, device)
        return moved, given, 0 if labels is None else len(labels)


def _augmented(
    augment: Augment, inputs: dict[str, torch.Tensor], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Other values of the same inputs, in their order: models are called by position.

    Raises:
        TaskError: it raises; or what comes back has other inputs or samples, or floats of another width.
    """
    wanted = {name: (tensor.dtype, len(tensor)) for name, tensor in inputs.items()}
    changed: Any = run_user_code(lambda: augment(inputs, generator), "the task's augment")
    if not isinstance(changed, Mapping) or set(changed) != set(wanted):
        found = sorted(map(str, changed)) if isinstance(changed, Mapping) else type(changed).__name__
        raise TaskError(f"the task's augment returned {found}; return a tensor for each of {sorted(wanted)}")
    for name, (dtype, count) in wanted.items():
        tensor = changed[name]
        fits = isinstance(tensor, torch.Tensor) and (tensor.dtype == dtype or not dtype.is_floating_point)
        if not fits or tensor.shape[:1] != (count,):
            found = f"{type(tensor).__name__} {getattr(tensor, 'dtype', '')} {tuple(getattr(tensor, 'shape', ()))}"
            raise TaskError(
                f"the task's augment returned '{name}' as {found}; return a tensor of {dtype} with the {count} samples "
                "it was given on axis 0"
            )
    return {name: changed[name] for name in wanted}


def check_lengths(task: Task, where: str) -> None:
    """Refuse samples with labels and without that cannot stand in one batch: an axis may be dynamic.

    Raises:
        DataError: the input, and both shapes.
    """
    if task.train is None or task.unlabelled is None:
        return
    first, second = (split.batch(np.arange(1))[0] for split in (task.train, task.unlabelled))
    for name in first:
        shapes = first[name].shape[1:], second[name].shape[1:]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{where}: input '{name}' of a sample is {shapes[0]} in 'train' and {shapes[1]} in 'unlabelled', and "
                "batches hold both; make them of one length"
            )


def batches_of(samples: int, batch_size: int) -> int:
    """How many an epoch has: full ones, or one that is not."""
    return max(1, samples // batch_size)


def _labelled_first(inputs: dict[str, np.ndarray], labels: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
    """The samples that have a label first, and the labels of those alone."""
    if labels is None:
        return inputs, None
    known = has_label(labels)
    order = np.argsort(~known, kind="stable")
    return {name: array[order] for name, array in inputs.items()}, labels[known]
