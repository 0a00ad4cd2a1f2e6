"""What no training could start with: labels the loss cannot take, a loss that is none, nothing that learns."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import batches
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.training_data import TrainingData
from edgesmith.compressor.stage import Context
from edgesmith.compressor.task_file import _spread
from edgesmith.core.errors import DataError, RecipeError, TaskError
from edgesmith.core.task import ArraySplit, Task

from ..conftest import Linear, make_context

TRAINING = [Finetune, Distill, QuantizationAwareTraining]
PARTS = [Finetune(id="t", epochs=1), Distill(id="t", epochs=1, loss="dkd")]


def labelled(task: Task, labels: np.ndarray, **more: Any) -> Task:
    return dataclasses.replace(task, train=ArraySplit(task.train.inputs, labels), **more)


class Frozen(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


def fresh(factory: Any, original: Candidate) -> Candidate:
    return Candidate(factory=factory, example=original.example, edits=(), weights=state_of(factory()))


@pytest.mark.parametrize("stage", PARTS, ids=["finetune", "distill"])
@pytest.mark.parametrize("dtype", ["int32", "uint16", "int8"])
def test_classes_of_any_integer_type_are_taken(
    dtype: str, stage: Any, original: Candidate, task: Task, tmp_path: Path
) -> None:
    start, trained = fresh(Linear, original), []
    for kind in ("int64", dtype):
        changed = labelled(task, task.train.labels.astype(kind))
        trained.append(stage.run(start, make_context(changed, tmp_path / kind, {"original": original})))
    assert trained[0].digest() == trained[1].digest() != start.digest()


@pytest.mark.parametrize("kind", TRAINING)
def test_a_class_that_there_is_not_is_found_where_it_is_read(
    kind: Any, original: Candidate, task: Task, context: Context
) -> None:
    """Beyond the samples that are looked at beforehand, of a split that does not hold its labels in memory."""
    seen = set(_spread(len(task.train)).tolist())
    wrong = [place for place in range(len(task.train)) if place not in seen][:300]

    class Rows:
        def __len__(self) -> int:
            return len(task.train)

        def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
            inputs, labels = task.train.batch(indices)
            return inputs, np.where(np.isin(indices, wrong), 12, labels)

    context = dataclasses.replace(context, task=dataclasses.replace(task, train=Rows()))
    stage = kind(id="t", epochs=1)
    stage.rehearse(original, context)
    with pytest.raises(DataError) as refusal:
        stage.run(original, context)
    assert str(refusal.value) == (
        "task 'digits': 'train' split: loss 'cross-entropy': the model gives 10 outputs (classes 0 to 9), but there is a "
        "label 12; the labels or the model's last layer belong to another task"
    )


@pytest.mark.parametrize(
    "layout", [lambda y: y.astype(">i4"), lambda y: y.repeat(2)[::2], lambda y: y[::-1].copy()[::-1]]
)
def test_labels_in_any_layout_and_byte_order_are_taken(layout: Any, task: Task, tmp_path: Path) -> None:
    """As files of other machines and a user's own slices have them."""

    class Rows:
        def __len__(self) -> int:
            return len(task.train)

        def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
            inputs, labels = task.train.batch(indices)
            return inputs, layout(labels)

    taken = TrainingData(Rows()).batch(np.arange(8), None, 0, torch.device("cpu"))[1]
    assert taken is not None and taken.tolist() == task.train.labels[:8].tolist()
    (_, drawn), (_, plain) = (
        next(batches(make_context(each, tmp_path, {}), "train", 8, 8))
        for each in (dataclasses.replace(task, train=Rows()), task)
    )
    assert drawn is not None and plain is not None and drawn.tolist() == plain.tolist()


NEEDS = "needs integer labels of shape (N,), got"


@pytest.mark.parametrize("stage", TRAINING)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 1, "the model gives 10 outputs (classes 0 to 9), but there is a label 10; the labels or the "),
        (
            lambda y: np.where(y == 3, -1, y),
            "the model gives 10 outputs (classes 0 to 9), but there is a label -1; the ",
        ),
        (lambda y: y.astype(np.float32), f"{NEEDS} float32 of shape (1077,)"),
        (lambda y: y[:, None], f"{NEEDS} int64 of shape (1077, 1)"),
        (lambda y: np.eye(10, dtype=np.int64)[y], f"{NEEDS} int64 of shape (1077, 10)"),
    ],
)
def test_training_labels_that_do_not_fit_are_refused_before_any_work(
    change: Any, message: str, stage: Any, original: Candidate, task: Task, tmp_path: Path
) -> None:
    context = make_context(labelled(task, change(task.train.labels)), tmp_path, {"original": original})
    with pytest.raises(DataError) as caught:
        stage(id="t").rehearse(original, context)
    assert str(caught.value).startswith(f"task 'digits': 'train' split: loss 'cross-entropy': {message}")


def test_labels_that_nothing_reads_may_be_anything(original: Candidate, task: Task, tmp_path: Path) -> None:
    """Mixtures are learnt from the teacher alone."""
    context = make_context(labelled(task, task.train.labels + 900), tmp_path, {"original": original})
    Distill(id="t", mixup=True).rehearse(original, context)
    with pytest.raises(DataError, match="there is a label 90"):
        Distill(id="t", mixup=True, compare=True).rehearse(original, context)


def test_training_labels_that_are_taken(original: Candidate, task: Task, tmp_path: Path) -> None:
    """Some are missing; and probabilities in place of classes, as mixed samples have them."""
    missing = np.where(np.arange(len(task.train.labels)) % 2, task.train.labels, -100)
    for labels in (missing, np.eye(10, dtype=np.float32)[task.train.labels]):
        Finetune(id="t").rehearse(original, make_context(labelled(task, labels), tmp_path, {}))
    bare = dataclasses.replace(task, train=None, unlabelled=ArraySplit(task.train.inputs))
    Distill(id="t").rehearse(original, make_context(bare, tmp_path, {"original": original}))


def test_numbers_that_do_not_fit_are_refused(original: Candidate, task: Task, tmp_path: Path) -> None:
    context = make_context(labelled(task, task.train.labels, loss="mse", metrics=("mae",)), tmp_path, {})
    with pytest.raises(DataError) as caught:
        Finetune(id="t").rehearse(original, context)
    assert str(caught.value) == (
        "task 'digits': 'train' split: loss 'mse': labels (1077,) are not those of an output (1077, 10)"
    )


RETURNED = "task 'digits': loss returned {}; return a tensor of one number, such as the mean over samples"


@pytest.mark.parametrize("stage", [Finetune(id="t"), Distill(id="t", loss="kd")], ids=["finetune", "distill"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda s, y: functional.cross_entropy(s, y, reduction="none"), RETURNED.format("a tensor (64,)")),
        (lambda s, y: 1, RETURNED.format("int")),
        (lambda s, y: None, RETURNED.format("NoneType")),
        (lambda s, y: {"loss": functional.cross_entropy(s, y)}, RETURNED.format("dict")),
        (lambda s, y: np.float32(1), RETURNED.format("float32")),
        (lambda s, y: s[:, 99].mean(), "task 'digits': loss raised IndexError: index 99 is out of bounds"),
    ],
)
def test_a_loss_of_the_users_own_that_is_none(
    loss: Any, message: str, stage: Any, original: Candidate, task: Task, tmp_path: Path
) -> None:
    context = make_context(dataclasses.replace(task, loss=loss), tmp_path, {"original": original})
    with pytest.raises(TaskError) as caught:
        stage.run(original, context)
    assert str(caught.value).startswith(message)


def test_a_loss_in_a_row_of_one_is_a_number(original: Candidate, task: Task, tmp_path: Path) -> None:
    trained = []
    for name, loss in (("row", lambda s, y: functional.cross_entropy(s, y).reshape(1)), ("name", "cross-entropy")):
        context = make_context(dataclasses.replace(task, loss=loss), tmp_path / name, {})
        trained.append(Finetune(id="t", epochs=1).run(original, context).digest())
    assert trained[0] == trained[1]


class TwoHeads(Linear):
    """The second output is what the last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(x), self.other(x.flatten(1))


def test_a_probe_of_a_head_that_the_loss_does_not_read(original: Candidate, task: Task, tmp_path: Path) -> None:
    both = dataclasses.replace(task, outputs=("logits", "other"))
    with pytest.raises(TaskError) as caught:
        Finetune(id="t", epochs=1, probe_epochs=1).run(fresh(TwoHeads, original), make_context(both, tmp_path, {}))
    assert str(caught.value).endswith(
        "no gradient comes from the loss to what learns; none of the layers that learn now has a say in output 'logits', "
        "so let others learn from the start"
    )


def test_a_loss_that_no_gradient_comes_from(original: Candidate, task: Task, tmp_path: Path) -> None:
    changed = dataclasses.replace(task, loss=lambda s, y: functional.cross_entropy(s.detach(), y))
    with pytest.raises(
        TaskError, match="'stage': no gradient comes from the loss to what learns; make a loss of your own of"
    ):
        Finetune(id="t").run(original, make_context(changed, tmp_path, {}))


class Empty(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


@pytest.mark.parametrize("stage", TRAINING)
@pytest.mark.parametrize(
    ("factory", "why"),
    [(Frozen, "all are frozen by the task's model function"), (Empty, "the network has none")],
)
def test_a_network_of_which_nothing_learns(
    factory: Any, why: str, stage: Any, original: Candidate, context: Context
) -> None:
    with pytest.raises(RecipeError) as caught:
        stage(id="t").rehearse(fresh(factory, original), context)
    assert str(caught.value) == f"stages[0] 'stage': no parameter would learn: {why}"


@pytest.mark.parametrize("stage", TRAINING)
def test_one_sample_is_no_batch(stage: Any, task: Task) -> None:
    one = dataclasses.replace(
        task, train=ArraySplit({"image": task.train.inputs["image"][:1]}, task.train.labels[:1]), calibration=task.train
    )
    with pytest.raises(TaskError) as caught:
        stage(id="t").check(one, "w")
    assert str(caught.value) == "w: there is one sample to train on, and a batch has two or more; give more data"


@pytest.mark.parametrize("stage", TRAINING)
def test_batches_that_make_no_step_are_refused(stage: Any, task: Task) -> None:
    """1,077 samples in batches of 64 are 16 of them; nothing was learnt of what did not fill a step."""
    stage(id="t", epochs=2, accumulation=32).check(task, "w")
    with pytest.raises(RecipeError) as caught:
        stage(id="t", epochs=2, accumulation=33).check(task, "w")
    assert str(caught.value) == (
        "w.accumulation: 33 batches make one step, and in all epochs there are 32, so that nothing would be learnt; lower "
        "it, or train for longer"
    )


@pytest.mark.parametrize("keys", [{"probe_epochs": 1}, {"learning_rates": (1e-3, 1e-2)}])
def test_neither_would_a_probe_or_a_trial_learn(keys: dict[str, Any], task: Task) -> None:
    with pytest.raises(RecipeError, match="17 batches make one step, and in all epochs there are 16"):
        Finetune(id="t", accumulation=17, **keys).check(task, "w")
