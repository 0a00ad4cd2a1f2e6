"""Self-training: a network labels the samples without labels that it is sure of, and learns from them as well."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ...benches.metrics.accuracy import labels_of, predict
from ...core.errors import DataError, TaskError
from ...core.task import NO_LABEL, Split, Task, has_label
from ...exporters.sessions.torch_session import TorchSession
from ..candidate import Candidate
from ..data import feeds
from ..evaluation import BATCH
from ..fusion.fusing import softmax
from ..stage import Context
from .padding import standing
from .training_data import check_lengths


@dataclasses.dataclass(frozen=True, eq=False)
class Extended:
    """A split, and behind it samples of another one with labels of their own."""

    first: Split
    second: Split
    chosen: np.ndarray  # indices into `second`
    labels: np.ndarray  # of these, `(len(chosen), ...)`

    def __len__(self) -> int:
        return len(self.first) + len(self.chosen)

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """See `Split.batch`."""
        own = indices < len(self.first)
        added = indices[~own] - len(self.first)
        if not own.any():
            return self.second.batch(self.chosen[added])[0], self.labels[added]
        inputs, labels = self.first.batch(indices[own])
        if own.all() or labels is None:
            return inputs, labels
        others, order = self.second.batch(self.chosen[added])[0], np.argsort(np.argsort(~own, kind="stable"))
        joined = {name: np.concatenate([array, others[name]])[order] for name, array in inputs.items()}
        return joined, np.concatenate([labels.astype(np.int64), self.labels[added]])[order]  # -100 needs a sign


def with_pseudo_labels(value: Candidate, threshold: float, context: Context) -> Extended:
    """`train`, and of `unlabelled` what the network is sure of, its top class as the label (Lee, 2013).

    They are given once, by the network as the stage gets it, without noise; what learns from them sees the task's
    augmentation and its own dropout (the noisy student; Xie et al., CVPR 2020). Where an output has positions beside
    the sample, as a segmentation has, those it is not sure of have no label.

    Padding has none either.

    Args:
        threshold: the least probability of the top class.

    Raises:
        DataError: it is sure of none; says how sure it is at most.
    """
    task = context.task
    train, unlabelled = task.split("train", context.where), task.split("unlabelled", context.where)
    session = TorchSession(value.module().to(context.machine.device), task.input_specs(), task.outputs)
    shares = softmax(np.moveaxis(predict(session, unlabelled, BATCH)[task.outputs[0]], 1, -1))
    sure = shares.max(-1)
    labels = np.where((sure >= threshold) & _real(unlabelled, sure.shape), shares.argmax(-1), NO_LABEL)
    chosen = np.flatnonzero(has_label(labels))
    if not len(chosen):
        raise DataError(
            f"{context.where}.pseudo_labels: the network is sure of none of {len(unlabelled):,} samples; its highest "
            f"probability is {sure.max():.3f} and {threshold:g} is asked for: lower it, or train longer on labels first"
        )
    context.notes.append(_note(unlabelled, labels, threshold, context.where))
    return Extended(train, unlabelled, chosen, labels[chosen])


def _real(split: Split, shape: Sequence[int]) -> np.ndarray:
    """Which answers, of `shape` `(N, ...)`, are of no padding; a bool array that fits."""
    found = (standing(feed, shape[1:]) for feed in feeds(split, np.arange(len(split)), BATCH))
    parts = [part for part in found if part is not None]
    return np.concatenate(parts) if parts else np.ones((), bool)


def _note(unlabelled: Split, labels: np.ndarray, threshold: float, where: str) -> str:
    """How many got a label, and how often it is right where the truth is known, as in an experiment."""
    given = has_label(labels)
    said = f"pseudo-labels: {given.sum():,} of {len(given):,} samples (probability {threshold:g} or more)"
    if unlabelled.batch(np.arange(1))[1] is None:
        return said
    truth = labels_of(unlabelled)
    if truth.shape != labels.shape:
        raise DataError(
            f"{where}: the labels of 'unlabelled' are {truth.shape}, those the network gives {labels.shape}"
        )
    known = (labels != NO_LABEL) & (truth != NO_LABEL)
    if not known.any():
        return said
    return f"{said}; right: {(labels == truth)[known].mean():.1%} of the {known.sum():,} whose label is known"


def check_pseudo_labels(task: Task, classes: bool, where: str) -> None:
    """Refuse a task without classes or without samples to label.

    Raises:
        TaskError: names what is missing.
    """
    if not classes:
        raise TaskError(f"task '{task.name}': {where}.pseudo_labels needs the loss 'cross-entropy': a top class")
    task.split("unlabelled", f"{where}.pseudo_labels")
    check_lengths(task, f"{where}.pseudo_labels")
