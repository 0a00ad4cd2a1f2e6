"""Padding teaches nothing: neither by a teacher's outputs, nor by features, pseudo-labels or what is not to be forgotten."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.fusion.merge_statistics import fisher
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.distillation import DISTILLATIONS
from edgesmith.compressor.learning.feature_losses import FEATURES, attention
from edgesmith.compressor.learning.features import Transfer
from edgesmith.compressor.learning.forgetting import without_forgetting
from edgesmith.compressor.learning.padding import standing
from edgesmith.compressor.learning.pseudo_labels import with_pseudo_labels
from edgesmith.compressor.learning.teaching import lesson_of
from edgesmith.core.task import NO_LABEL, ArraySplit, Task

from ..conftest import make_context

TOKENS, CLASSES, PAD = 6, 4, 0


class Tagger(nn.Module):
    """A class for each token `(N, 4, tokens)`, by that token alone: what padding taught would stand in its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(input_ids))).movedim(-1, 1)


def texts(count: int, seed: int) -> ArraySplit:
    rng = np.random.default_rng(seed)
    mask = (np.arange(TOKENS) < rng.integers(2, TOKENS, (count, 1))).astype(np.int64)
    ids = rng.integers(1, 20, (count, TOKENS)) * mask
    return ArraySplit({"input_ids": ids, "attention_mask": mask}, np.where(mask > 0, ids % CLASSES, NO_LABEL))


@pytest.fixture(scope="module")
def tagging() -> Task:
    return Task(
        name="tags",
        model=Tagger,
        train=texts(64, 0),
        validation=texts(16, 1),
        test=texts(16, 2),
        unlabelled=texts(32, 3),
        metrics=("position-accuracy",),
    )


def candidate(task: Task, seed: int) -> Candidate:
    torch.manual_seed(seed)
    return Candidate(factory=Tagger, example=batch(task, 2)[0], edits=(), weights=state_of(Tagger()))


def batch(task: Task, count: int = 16) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs, labels = task.train.batch(np.arange(count))  # type: ignore[union-attr]  # there is one
    return {name: torch.tensor(array) for name, array in inputs.items()}, torch.tensor(labels)


def learns_from_padding(module: Tagger, loss: torch.Tensor) -> bool:
    (slope,) = torch.autograd.grad(loss, module.embed.weight)
    assert bool((slope[1:] != 0).any())
    return bool((slope[PAD] != 0).any())


def test_what_the_inputs_say() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    found = standing({"ids": mask, "attention_mask": mask}, (3,))
    assert found is not None and found.tolist() == [[True, True, False], [True, False, False]]
    assert standing({"attention_mask": mask}, (4,)) is None  # answers of other positions
    assert standing({"attention_mask": mask}, ()) is None  # one answer for the whole text
    assert standing({"attention_mask": mask}, (3, 3)) is None
    assert standing({"ids": mask}, (3,)) is None


@pytest.mark.parametrize("labelled", [16, 4, 0])
@pytest.mark.parametrize("loss", sorted(DISTILLATIONS))
def test_a_teacher_says_nothing_of_padding(loss: str, labelled: int, tagging: Task, tmp_path: Path) -> None:
    """The soft part is that of the real tokens as rows, each with its label or the teacher's first class."""
    student, teacher = candidate(tagging, 0), candidate(tagging, 1)
    context = make_context(tagging, tmp_path, {"original": teacher})
    inputs, labels = batch(tagging)
    module: Any = student.module()
    given = labels[:labelled] if labelled else None
    found = lesson_of(Distill(id="d", loss=loss, temperature=2.0), context).objective(module, inputs, given, labelled)
    assert not learns_from_padding(module, found)

    with torch.no_grad():
        s, t = (each(*inputs.values()).movedim(1, -1) for each in (module, teacher.module()))
    real = inputs["attention_mask"] > 0
    classes = t.argmax(-1)
    classes[:labelled] = labels[:labelled].where(real[:labelled], classes[:labelled])
    expected = DISTILLATIONS[loss]()(s[real], t[real], classes[real], 2.0)
    if labelled:
        hard = functional.cross_entropy(s[:labelled].movedim(-1, 1), labels[:labelled])
        expected = expected + hard * labelled / 16
    torch.testing.assert_close(found.detach(), expected)


def test_a_missing_label_is_no_padding(tagging: Task, tmp_path: Path) -> None:
    """In a sparsely labelled image or text the teacher speaks of what has no label."""
    context = make_context(tagging, tmp_path, {"original": candidate(tagging, 1)})
    inputs, labels = batch(tagging)
    labels[:, 1:] = NO_LABEL
    module: Any = candidate(tagging, 0).module()
    answers: list[torch.Tensor] = []

    def kept(layer: nn.Module, given: object, output: torch.Tensor) -> None:
        answers.append(output)

    module.register_forward_hook(kept)
    loss = lesson_of(Distill(id="d"), context).objective(module, inputs, labels, 16)
    (slope,) = torch.autograd.grad(loss, answers)
    taught = (slope.abs().sum(1) > 0).int()
    assert torch.equal(taught, inputs["attention_mask"].int())


@pytest.mark.parametrize("features", sorted(FEATURES))
def test_features_of_padding_are_not_followed(features: str, tagging: Task, tmp_path: Path) -> None:
    student, teacher = candidate(tagging, 0), candidate(tagging, 1)
    context = make_context(tagging, tmp_path, {"original": teacher})
    stage = Distill(id="d", features=features, feature_layers={"body": "body"}, feature_weight=3.0)
    lesson, module = lesson_of(stage, context), student.module()
    taught: Any = lesson.teachers["original"].module
    transfer = Transfer(stage, module, student, {"original": taught}, lesson.shares, context)
    inputs, labels = batch(tagging)
    found = transfer.added_to(lesson.objective)(transfer.learner, inputs, labels, 16)
    assert not learns_from_padding(module, found)  # type: ignore[arg-type]  # it is a Tagger

    plain = lesson.objective(module, inputs, labels, 16)
    real = inputs["attention_mask"] > 0
    with torch.no_grad():
        s, t = (each.body(each.embed(inputs["input_ids"])) for each in (module, taught))
        if features == "attention":
            each = [attention(a[None, row], b[None, row]) for a, b, row in zip(s, t, real, strict=True)]
            expected = torch.stack(each).mean()
        else:
            expected = FEATURES[features].loss(s[real][None], t[real][None])
    torch.testing.assert_close((found - plain).detach(), 3.0 * expected)


def test_padding_gets_no_pseudo_label(tagging: Task, tmp_path: Path) -> None:
    extended = with_pseudo_labels(candidate(tagging, 0), 0.1, make_context(tagging, tmp_path, {}))
    inputs, labels = extended.batch(np.arange(len(extended)))
    assert labels is not None
    np.testing.assert_array_equal(labels == NO_LABEL, inputs["attention_mask"] == 0)


def test_what_is_not_forgotten_is_not_how_padding_was_answered(tagging: Task, tmp_path: Path) -> None:
    task = dataclasses.replace(tagging, old=tagging)
    keeper = without_forgetting(candidate(task, 1), 1.0, make_context(task, tmp_path, {}))
    module: Any = candidate(task, 0).module()
    inputs = batch(task)[0]
    assert not learns_from_padding(module, keeper(inputs, {"output": module(*inputs.values())}))


def test_padding_tells_nothing_of_the_weights(tagging: Task) -> None:
    """No class is drawn for it where Fisher information is gathered."""
    inputs, labels = batch(tagging)
    single = [
        ({name: each[row : row + 1] for name, each in inputs.items()}, labels[row : row + 1]) for row in range(16)
    ]
    found = fisher(candidate(tagging, 0).module(), single, tagging, "output", torch.Generator().manual_seed(0))
    rows = found["embed.weight"].sum(1)
    assert float(rows[PAD]) == 0.0 and float(rows[1:].sum()) > 0


def test_a_mask_of_floats_says_nothing_of_padding() -> None:
    """It is added to what attention asks: 0 keeps a token, and minus infinity hides it."""
    mask = torch.tensor([[0.0, -torch.inf]])
    assert standing({"attention_mask": mask}, (2,)) is None
    assert standing({"attention_mask": mask.numpy()}, (2,)) is None
