"""Who teaches, what a student sees of it, and what happens to samples without a label."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import batches
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning import teaching
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.teaching import check_answers, lesson_of
from edgesmith.compressor.learning.training_data import TrainingData
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Graph
from edgesmith.compressor.task_file import check_data
from edgesmith.core.errors import DataError, RecipeError, TaskError
from edgesmith.core.task import NO_LABEL, ArraySplit, Task, has_label

from ..conftest import Linear, make_context


class Centred(Linear):
    """Normalizes its input in place, as some models do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(0.5).mul_(2.0))


def candidate(factory: Any, original: Candidate, seed: int) -> Candidate:
    torch.manual_seed(seed)
    return Candidate(factory=factory, example=original.example, edits=(), weights=state_of(factory()))


@pytest.fixture(scope="module")
def linear(original: Candidate) -> Candidate:
    return candidate(Linear, original, 0)


def first_batch(task: Task) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs, labels = task.train.batch(np.arange(16))
    return {name: torch.tensor(array) for name, array in inputs.items()}, torch.tensor(labels)


# --- several teachers


def test_two_teachers_are_two_soft_parts(linear: Candidate, original: Candidate, task: Task, tmp_path: Path) -> None:
    """With equal shares: the mean of the two lessons, each of which is that of the teacher alone."""
    other = candidate(Linear, original, 1)
    context = make_context(task, tmp_path, {"original": original, "other": other})
    inputs, labels = first_batch(task)

    def value(**keys: Any) -> torch.Tensor:
        objective = lesson_of(Distill(id="d", **keys), context).objective
        return objective(linear.module(), inputs, labels, 16).detach()

    mean = (value(teacher="original") + value(teacher="other")) / 2
    torch.testing.assert_close(value(teachers=("original", "other")), mean)
    assert not torch.isclose(value(teacher="original"), value(teacher="other"))


def test_the_better_teacher_counts_for_more(original: Candidate, task: Task, tmp_path: Path) -> None:
    """Shares are inverse to the loss on validation, computed here by hand."""
    weak = candidate(Linear, original, 1)
    context = make_context(task, tmp_path, {"original": original, "weak": weak})
    lesson = lesson_of(Distill(id="d", teachers=("original", "weak"), teacher_weights="competence"), context)
    images, labels = torch.tensor(task.validation.inputs["image"]), torch.tensor(task.validation.labels)
    with torch.no_grad():
        losses = [float(functional.cross_entropy(c.module()(images), labels)) for c in (original, weak)]
    assert lesson.shares["weak"] == pytest.approx(losses[0] / sum(losses), rel=1e-4)
    assert sum(lesson.shares.values()) == pytest.approx(1.0)
    assert lesson.note() == f"taught by original ({lesson.shares['original']:.2f}), weak ({lesson.shares['weak']:.2f})"
    assert lesson.shares["original"] > 0.9


def test_a_stage_is_taught_by_several(
    linear: Candidate, original: Candidate, exported: Graph, task: Task, tmp_path: Path
) -> None:
    """A module and a file, through a whole stage; and they are asked for before it starts."""
    context = make_context(task, tmp_path, {"original": original, "file": exported})
    stage = Distill(id="d", teachers=("original", "file"), epochs=1, learning_rate=1e-2)
    assert stage.needs() == ("original", "file")
    taught = stage.run(linear, context)
    assert taught.digest() != linear.digest()
    assert context.notes == ["taught by original (0.50), file (0.50), best epoch 1 of 1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": "a", "teachers": ("b", "c")}, "w: set teacher or teachers, not both"),
        ({"teachers": ("b", "b")}, "w.teachers: ['b', 'b'] names one twice"),
        (
            {"teacher_weights": "competence"},
            "w.teacher_weights: 'competence' compares teachers; name several in teachers",
        ),
        (
            {"loss": "mse", "temperature": 2.0},
            "w.temperature: 'mse' compares the logits, and nothing is softened; leave it out",
        ),
        ({"loss": "dits"}, "w.loss: unknown 'dits'; did you mean 'dist'? known: dist, dkd, kd, mse, nkd"),
    ],
)
@pytest.mark.parametrize("stage", [Distill, QuantizationAwareTraining])
def test_what_cannot_teach_is_refused(stage: Any, keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        stage(id="s", **keys).check(task, "w")
    assert str(caught.value) == message


@pytest.mark.parametrize("stage", [Distill, QuantizationAwareTraining])
def test_a_temperature_that_nothing_reads_is_refused(stage: Any, task: Task) -> None:
    numbers = dataclasses.replace(task, loss="mse", metrics=("mae",))
    stage(id="s").check(numbers, "w")
    with pytest.raises(RecipeError) as caught:
        stage(id="s", temperature=2.0).check(numbers, "w")
    assert str(caught.value) == (
        "w.temperature: the task's own loss compares numbers, and nothing is softened; leave it out"
    )


def with_lengths(task: Task, first: int, second: int) -> Task:
    """Of texts whose tokens are a dynamic axis; the unlabelled ones of another length."""
    whole, bare = (ArraySplit({"ids": np.ones((4, each), np.int64)}, np.zeros(4, np.int64)) for each in (first, second))
    return dataclasses.replace(
        task, train=whole, unlabelled=bare, calibration=whole, dynamic_axes={"ids": {1: "tokens"}}
    )


@pytest.mark.parametrize(
    "stage", [Distill(id="s"), QuantizationAwareTraining(id="s"), Finetune(id="s", pseudo_labels=0.9)]
)
def test_samples_that_cannot_stand_in_one_batch_are_refused(stage: Any, task: Task) -> None:
    with pytest.raises(DataError) as caught:
        stage.check(with_lengths(task, 6, 9), "w")
    where = "w.pseudo_labels" if isinstance(stage, Finetune) else "w"
    assert str(caught.value) == (
        f"{where}: input 'ids' of a sample is (6,) in 'train' and (9,) in 'unlabelled', and batches hold both; make them of "
        "one length"
    )


def test_a_loss_of_the_users_own_that_wants_classes(original: Candidate, task: Task, tmp_path: Path) -> None:
    """As one of embeddings does: a teacher's output is no label to it."""

    def own(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -(output * functional.one_hot(labels, 10)).mean()

    context = make_context(dataclasses.replace(task, loss=own), tmp_path, {"original": original})
    inputs, labels = first_batch(task)
    with pytest.raises(TaskError) as caught:
        lesson_of(Distill(id="d"), context).objective(original.module(), inputs, labels, 16)
    assert str(caught.value).startswith(
        f"{context.where}: the task's loss with a teacher's output for the labels (or compare: loss = \"mse\") raised "
        "RuntimeError: one_hot is only applicable to index tensor"
    )
    compared = lesson_of(Distill(id="d", loss="mse"), context).objective(original.module(), inputs, labels, 16)
    torch.testing.assert_close(compared, own(original.module()(*inputs.values()), labels))


def test_competence_needs_losses_that_compare(linear: Candidate, original: Candidate, context: Context) -> None:
    task = dataclasses.replace(context.task, loss=lambda output, labels: output.mean() * 0 - 1)
    changed = dataclasses.replace(context, task=task, named=lambda name: original)
    with pytest.raises(DataError) as caught:
        lesson_of(Distill(id="d", teachers=("a", "b"), teacher_weights="competence"), changed)
    assert str(caught.value) == (
        "stages[0] 'stage'.teacher_weights: the loss of teacher 'a' on validation is -1; "
        "'competence' needs losses that are not negative"
    )


# --- consistent views


@pytest.mark.parametrize("kind", ["module", "file"])
def test_teacher_and_student_see_the_very_same_view(
    kind: str,
    original: Candidate,
    exported: Graph,
    linear: Candidate,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batch for batch the same augmented images; and they are augmented."""
    teacher: Candidate | Graph = original if kind == "module" else exported
    seen: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}
    opened = teaching.open_teacher

    def watched(model: Any, context: Context) -> Any:
        inner = opened(model, context)

        def asked(inputs: Any) -> torch.Tensor:
            seen["teacher"].append(inputs["image"].clone())
            return inner(inputs)

        return asked

    monkeypatch.setattr("edgesmith.compressor.learning.teaching.open_teacher", watched)

    class Watched(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen["student"].append(x.clone())
            return super().forward(x)

    student = dataclasses.replace(linear, factory=Watched)
    Distill(id="d", epochs=2).run(student, dataclasses.replace(context, named=lambda name: teacher))
    assert len(seen["teacher"]) == len(seen["student"]) == 32
    assert all(torch.equal(a, b) for a, b in zip(seen["teacher"], seen["student"], strict=True))
    plain = {image.tobytes() for image in context.task.train.inputs["image"]}
    moved = [image.numpy().tobytes() not in plain for batch in seen["student"] for image in batch]
    assert np.mean(moved) > 0.5


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_model_that_changes_its_input_changes_it_for_nobody_else(
    who: str, original: Candidate, linear: Candidate, task: Task, tmp_path: Path
) -> None:
    centred = candidate(Centred, original, 1)
    teacher, student = (centred, linear) if who == "teacher" else (linear, centred)
    context = make_context(task, tmp_path, {"original": teacher})
    inputs, labels = first_batch(task)
    clean = inputs["image"].clone()
    found = lesson_of(Distill(id="d"), context).objective(student.module(), inputs, labels, 16).detach()
    with torch.no_grad():
        s, t = student.module()(clean.clone()), teacher.module()(clean.clone())
    p, log_q = functional.softmax(t / 4, 1), functional.log_softmax(s / 4, 1)
    expected = functional.cross_entropy(s, labels) + 16 * (p * (p.log() - log_q)).sum(1).mean()
    torch.testing.assert_close(found, expected)


# --- a file that teaches


def test_a_file_of_a_fixed_batch_teaches(exported: Graph, linear: Candidate, task: Task, tmp_path: Path) -> None:
    """It is asked about as many at once, the last ones filled up."""
    model = onnx.load(exported.path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "fixed.onnx")
    fixed = Graph(path=tmp_path / "fixed.onnx", digest="")
    context = make_context(task, tmp_path, {"original": fixed, "any": exported})
    inputs, labels = first_batch(task)
    found = [
        lesson_of(Distill(id="d", teacher=name), context).objective(linear.module(), inputs, labels, 16).detach()
        for name in ("original", "any")
    ]
    torch.testing.assert_close(*found)


def test_a_file_with_other_answers_is_refused_before_any_work(
    exported: Graph, original: Candidate, task: Task, tmp_path: Path
) -> None:
    seven = candidate(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), original, 0)
    context = make_context(task, tmp_path, {"original": exported, "later": Graph(path=Path(), digest="")})
    with pytest.raises(DataError) as caught:
        check_answers(("later", "original"), seven, context)
    assert str(caught.value) == (
        "stages[0] 'stage': output 'logits' is (2, 7) for the student, (2, 10) for teacher 'original'; they must agree"
    )


# --- samples without a label


def partly(task: Task, kept: int) -> Task:
    """All but the first `kept` training labels are missing."""
    labels = task.train.labels.copy()
    labels[kept:] = NO_LABEL
    return dataclasses.replace(task, train=ArraySplit(task.train.inputs, labels))


def test_has_label() -> None:
    assert has_label(np.array([3, NO_LABEL, 0])).tolist() == [True, False, True]
    assert has_label(np.array([[1.0, np.nan], [np.nan, np.nan]])).tolist() == [True, False]
    assert has_label(np.array([[NO_LABEL, 1], [NO_LABEL, NO_LABEL]])).tolist() == [True, False]


def test_labelled_samples_of_a_split_come_first(task: Task) -> None:
    data = TrainingData(partly(task, 4).train, ArraySplit({"image": task.validation.inputs["image"]}))
    indices = np.array([1, 3, 4, 9, len(task.train)])
    inputs, labels, labelled = data.batch(indices, None, 0, torch.device("cpu"))
    assert labelled == 2
    assert labels is not None and labels.tolist() == task.train.labels[[1, 3]].tolist()
    rest = task.train.inputs["image"][[1, 3, 4, 9]]
    np.testing.assert_array_equal(inputs["image"].numpy(), np.concatenate([rest, task.validation.inputs["image"][:1]]))
    none = data.batch(np.array([5, 6]), None, 0, torch.device("cpu"))
    assert none[2] == 0
    assert none[1] is not None and len(none[1]) == 0


@pytest.mark.parametrize("stage", [Distill, Finetune])
def test_missing_labels_are_never_read(
    stage: Any, linear: Candidate, original: Candidate, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hard loss gets the labels that are there, and no other; a batch without any trains on nothing or the teacher."""
    read: list[int] = []

    def watched(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        read.extend(labels.tolist())
        return functional.cross_entropy(output, labels)

    some = dataclasses.replace(partly(task, 20), loss=watched)
    context = make_context(some, tmp_path, {"original": original})
    keys = {"loss": "kd"} if stage is Distill else {}
    taught = stage(id="t", epochs=1, learning_rate=1e-2, batch_size=16, **keys).run(linear, context)
    assert 0 < len(read) <= 20
    assert NO_LABEL not in read
    assert taught.digest() != linear.digest()


def test_a_few_labels_and_a_teacher_are_better_than_the_few_labels(
    original: Candidate, task: Task, tmp_path: Path, accuracy: Any
) -> None:
    """What partly labelled data is for: 40 labels, and 1,000 images that only the teacher speaks of."""
    few = partly(task, 40)
    pruned = Prune(id="p", macs_ratio=0.35, round_to=1).run(original, make_context(task, tmp_path / "p", {}))
    reached = {}
    for name, stage in (("plain", Finetune), ("taught", Distill)):
        context = make_context(few, tmp_path / name, {"original": original})
        reached[name] = accuracy(stage(id="t", epochs=3, learning_rate=2e-3).run(pruned, context))
    assert reached["taught"] > 0.93
    assert reached["taught"] > reached["plain"] + 0.02


def test_statistics_that_need_labels_take_samples_that_have_one(task: Task, tmp_path: Path) -> None:
    some = make_context(partly(task, 30), tmp_path, {})
    taken = list(batches(some, "train", 20, 8, labelled=True))
    labels = torch.cat([labels for _, labels in taken if labels is not None])
    assert len(labels) == 20 and int(labels.min()) >= 0
    whole = make_context(task, tmp_path, {})
    pairs = zip(batches(whole, "train", 20, 8, labelled=True), batches(whole, "train", 20, 8), strict=True)
    assert all(torch.equal(a[0]["image"], b[0]["image"]) for a, b in pairs)  # where all have one, nothing changes
    none = make_context(partly(task, 0), tmp_path, {})
    with pytest.raises(TaskError) as caught:
        list(batches(none, "train", 20, 8, labelled=True))
    assert str(caught.value) == "task 'digits': stages[0] 'stage' needs labels, and the 'train' split has none"


def test_a_split_whose_labels_are_all_missing_has_none(task: Task) -> None:
    with pytest.raises(TaskError, match="task 'digits': w needs labels, and the 'train' split has none"):
        Finetune(id="t").check(partly(task, 0), "w")
    Finetune(id="t").check(partly(task, 1), "w")
    Distill(id="t").check(partly(task, 0), "w")


def test_a_missing_label_may_be_nan_in_the_training_split_alone(task: Task) -> None:
    values = task.train.labels[:, None].astype(np.float32).repeat(2, 1)
    values[3] = np.nan
    regression = dataclasses.replace(task, loss="mse", metrics=("mae",), train=ArraySplit(task.train.inputs, values))
    check_data(regression)
    values[4, 0] = np.nan
    with pytest.raises(DataError) as caught:
        check_data(regression)
    assert str(caught.value) == (
        "task 'digits': 'train' split: the labels hold NaN or infinity; clean the data; "
        "a label that is missing is NaN throughout"
    )
    values[4] = np.nan
    check_data(regression)
    with pytest.raises(DataError, match=r"'validation' split: the labels hold NaN or infinity; clean the data$"):
        check_data(dataclasses.replace(regression, validation=regression.train))
