"""Classes of different size: scikit-learn's numbers, and that a rare class is found."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.learning.class_balance import balanced, report
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.losses import task_loss
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import DataError, RecipeError
from edgesmith.core.task import ArraySplit, Task

LABELS = np.random.default_rng(0).choice(4, 500, p=[0.7, 0.2, 0.07, 0.03])


def test_weights_are_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(balanced(np.append(LABELS, [-100] * 9), 4, "w").numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("labels", "empty"), [([0, 0, 2], 1), ([0, 0, 1], 2)], ids=["middle", "last"])
def test_a_class_without_samples_is_named(labels: list[int], empty: int) -> None:
    with pytest.raises(DataError) as caught:
        balanced(np.array(labels), 3, "w")
    assert str(caught.value) == (
        f"w.class_weights: class {empty} has no sample in the 'train' split; there is nothing to balance"
    )


def test_a_label_beyond_the_models_classes_is_named() -> None:
    with pytest.raises(DataError) as caught:
        balanced(np.array([0, 1, 2, 3]), 3, "w")
    assert str(caught.value) == "w.class_weights: label 3 in 'train', but the model has 3 classes"


def test_the_report_is_scikit_learns() -> None:
    logits = np.random.default_rng(1).normal(size=(500, 4)) + 1.5 * np.eye(4)[LABELS]
    logits[:, 3] = -9  # never answered
    numbers = precision_recall_fscore_support(LABELS, logits.argmax(1), zero_division=0)
    for line, name, precision, recall, f1, there in zip(report(logits, LABELS, "abcd"), "abcd", *numbers, strict=True):
        assert line == f"class {name}: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f} ({there} samples)"
    assert report(logits, LABELS, ())[3].startswith("class 3: precision 0.000, recall 0.000, F1 0.000 (")


def test_of_many_classes_the_worst_are_shown() -> None:
    labels = np.repeat(np.arange(30), 4)
    logits = np.eye(30)[labels]
    logits[labels == 17] = np.eye(30)[3]
    lines = report(logits, labels, ())
    assert len(lines) == 20
    assert [line.split(":")[0] for line in lines[:3]] == ["class 17", "class 3", "class 0"]


def test_balanced_cross_entropy_is_torchs(original: Candidate, task: Task) -> None:
    images, labels = torch.tensor(task.train.inputs["image"][:64]), torch.tensor(task.train.labels[:64])  # type: ignore[union-attr]
    weights, module = balanced(LABELS, 4, "w").repeat(3)[:10], original.module()
    expected = functional.cross_entropy(module(images), labels, weight=weights)
    torch.testing.assert_close(task_loss(task, weights)(module, {"image": images}, labels), expected)


def test_a_rare_class_is_found_more_often(original: Candidate, context: Context) -> None:
    """One image of an eight for thirty others: from a new head, balance finds eights that plain training passes over."""
    images, labels = context.task.train.inputs["image"], context.task.train.labels  # type: ignore[union-attr]
    eights = np.flatnonzero(labels == 8)
    kept = np.sort(np.concatenate([np.flatnonzero(labels != 8), eights[:4]]))
    task = dataclasses.replace(context.task, train=ArraySplit({"image": images[kept]}, labels[kept]))
    fresh = {name: torch.zeros_like(t) if name.startswith("head") else t for name, t in original.weights.items()}
    keys: dict[str, Any] = {"id": "t", "epochs": 2, "learning_rate": 5e-3, "freeze": ("st*", "norm")}
    recalls = []
    for weights in ("equal", "balanced"):
        inner = dataclasses.replace(context.within(weights), task=task, notes=[])
        Finetune(**keys, class_weights=weights, class_report=True).run(
            dataclasses.replace(original, weights=fresh), inner
        )
        line = next(note for note in inner.notes if note.startswith("class 8: "))
        recalls.append(float(line.split("recall ")[1].split(",")[0]))
    assert recalls[1] > recalls[0]


def test_balance_is_for_classes(task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", class_weights="balanced").check(dataclasses.replace(task, loss="mse"), "w")
    assert str(caught.value) == "w.class_weights: 'balanced' is for the loss 'cross-entropy'; leave it out"


def test_a_class_report_needs_classes(task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", class_report=True).check(dataclasses.replace(task, loss="mse"), "w")
    assert str(caught.value) == "w.class_report: needs the loss 'cross-entropy' and one class for each sample"
