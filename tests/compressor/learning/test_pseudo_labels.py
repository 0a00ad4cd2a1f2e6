"""Self-training: who gets a label, that the truth is not looked at, and what it is worth with 20 labels a class."""

import dataclasses
import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.pseudo_labels import Extended, with_pseudo_labels
from edgesmith.core.errors import DataError, RecipeError, TaskError
from edgesmith.core.task import NO_LABEL, ArraySplit, Task
from edgesmith.exporters.sessions.torch_session import TorchSession

from ..conftest import make_context

KEYS: dict[str, Any] = {"id": "t", "batch_size": 32, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def few(task: Task, example: ModuleType) -> Task:
    """Digits with 20 labels a class; the other training images have none that anybody would look at."""
    images, labels = task.train.inputs["image"], task.train.labels  # type: ignore[union-attr]  # an ArraySplit with labels
    rng = np.random.default_rng(1)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == each))[:20] for each in range(10)])
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    return dataclasses.replace(
        task,
        model=functools.partial(example.DigitsNet, 8),
        train=ArraySplit({"image": images[chosen]}, labels[chosen]),
        unlabelled=ArraySplit({"image": images[rest]}, labels[rest]),
    )


@pytest.fixture(scope="module")
def learnt_from_few(few: Task, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    torch.manual_seed(1)
    module = few.model()
    example = {"image": torch.tensor(few.train.batch(np.arange(2))[0]["image"])}  # type: ignore[union-attr]  # an ArraySplit with labels
    start = Candidate(factory=few.model, example=example, edits=(), weights=state_of(module))
    context = make_context(few, tmp_path_factory.mktemp("few"), {}, seed=1)
    return Finetune(**KEYS, epochs=10).run(start, context)


def accuracy(candidate: Candidate, task: Task) -> float:
    """On the test images, which nothing here has chosen by."""
    session = TorchSession(candidate.module(), task.input_specs(), task.outputs)
    return evaluate(session, task.test, task_metrics(task))["accuracy"]


@pytest.mark.slow
def test_it_gains_on_what_labels_alone_taught(few: Task, learnt_from_few: Candidate, tmp_path: Path) -> None:
    context = make_context(few, tmp_path, {}, seed=1)
    taught = Finetune(**KEYS, epochs=8, pseudo_labels=0.6).run(learnt_from_few, context)
    assert accuracy(taught, few) > accuracy(learnt_from_few, few) + 0.05
    said = context.notes[0]
    assert said.startswith("pseudo-labels: ")
    assert float(said.split("right: ")[1].split("%")[0]) > 95  # of those given


def test_the_truth_is_only_reported(few: Task, learnt_from_few: Candidate, tmp_path: Path) -> None:
    stage = Finetune(**KEYS, epochs=1, pseudo_labels=0.9)
    unknown = dataclasses.replace(few, unlabelled=ArraySplit(few.unlabelled.inputs))  # type: ignore[union-attr]  # an ArraySplit with labels
    known, blind = make_context(few, tmp_path / "known", {}), make_context(unknown, tmp_path / "blind", {})
    first, second = stage.run(learnt_from_few, known), stage.run(learnt_from_few, blind)
    assert all(torch.equal(first.weights[name], tensor) for name, tensor in second.weights.items())
    assert blind.notes[0] == known.notes[0].split("; right")[0]


def test_labels_are_the_top_classes_of_those_it_is_sure_of(
    few: Task, learnt_from_few: Candidate, tmp_path: Path
) -> None:
    made = with_pseudo_labels(learnt_from_few, 0.8, make_context(few, tmp_path, {}))
    with torch.no_grad():
        logits = learnt_from_few.module()(torch.tensor(few.unlabelled.inputs["image"]))  # type: ignore[union-attr]  # an ArraySplit with labels
    sure, top = logits.softmax(1).max(1)
    expected = np.flatnonzero(sure.numpy() >= 0.8)
    assert 100 < len(expected) < 800
    np.testing.assert_array_equal(made.chosen, expected)
    np.testing.assert_array_equal(made.labels, top.numpy()[expected])


def test_a_batch_of_both_comes_in_its_order() -> None:
    """Sample i is the image full of i."""

    def images(values: np.ndarray) -> ArraySplit:
        return ArraySplit({"x": values.astype(np.float32)[:, None]}, values)

    chosen = np.array([1, 3, 4])
    made = Extended(images(np.arange(4)), images(np.arange(10, 16)), chosen, chosen + 100)
    assert len(made) == 7
    for indices in ([5, 0, 4, 3, 6], [0, 2], [6, 4], [1]):
        inputs, labels = made.batch(np.array(indices))
        np.testing.assert_array_equal(inputs["x"][:, 0], np.array([0, 1, 2, 3, 11, 13, 14])[indices])
        np.testing.assert_array_equal(labels, np.array([0, 1, 2, 3, 101, 103, 104])[indices])


def test_positions_it_is_not_sure_of_have_no_label(few: Task, tmp_path: Path) -> None:
    """An output with an axis beside sample and class: one position is sure, the other is not."""

    class TwoPositions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([[5.0, 0.1], [0.0, 0.0]]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias + 0 * x.mean((1, 2, 3))[:, None, None]

    value = Candidate(factory=TwoPositions, example={}, edits=(), weights=state_of(TwoPositions()))
    unknown = dataclasses.replace(few, unlabelled=ArraySplit(few.unlabelled.inputs))  # type: ignore[union-attr]  # an ArraySplit with labels
    made = with_pseudo_labels(value, 0.9, make_context(unknown, tmp_path, {}))
    assert np.unique(made.labels, axis=0).tolist() == [[0, NO_LABEL]]


def test_a_network_that_is_sure_of_nothing(few: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    value = Candidate(factory=few.model, example={}, edits=(), weights=state_of(few.model()))
    with pytest.raises(DataError) as error:
        with_pseudo_labels(value, 0.99, make_context(few, tmp_path, {}))
    start, end = str(error.value).split("its highest probability is ")
    assert start == "stages[0] 'stage'.pseudo_labels: the network is sure of none of 877 samples; "
    assert end[5:] == " and 0.99 is asked for: lower it, or train longer on labels first"


def test_a_task_without_samples_to_label(few: Task) -> None:
    with pytest.raises(TaskError) as error:
        Finetune(id="f", pseudo_labels=0.9).check(dataclasses.replace(few, unlabelled=None), "s")
    assert str(error.value) == (
        "task 'digits': s.pseudo_labels needs the 'unlabelled' split; set unlabelled= in the task"
    )
    with pytest.raises(TaskError) as error:
        Finetune(id="f", pseudo_labels=0.9).check(dataclasses.replace(few, loss="mse"), "s")
    assert str(error.value) == "task 'digits': s.pseudo_labels needs the loss 'cross-entropy': a top class"


def test_positions_without_a_label_have_none_whatever_type_the_labels_are_of() -> None:
    """Bytes know no -100: it became class 156."""
    images = np.zeros((2, 1, 3, 3), np.float32)
    train = ArraySplit({"image": images}, np.ones((2, 3, 3), np.uint8))
    given = np.full((2, 3, 3), NO_LABEL)
    given[:, 0] = 2
    both = Extended(train, ArraySplit({"image": images}), np.arange(2), given)
    labels = both.batch(np.arange(4))[1]
    assert labels is not None
    np.testing.assert_array_equal(labels, np.concatenate([np.ones((2, 3, 3)), given]))


@pytest.mark.parametrize("keys", [{"pseudo_labels": 0.9}, {"class_weights": "balanced"}])
def test_probabilities_for_labels_are_no_classes(keys: dict[str, Any], few: Task) -> None:
    train: Any = few.train
    soft = dataclasses.replace(few, train=ArraySplit(train.inputs, np.eye(10, dtype=np.float32)[train.labels]))
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", **keys).check(soft, "w")
    assert str(caught.value) == (
        f"w.{next(iter(keys))}: the labels of 'train' are probabilities; it needs classes (integers)"
    )


def test_so_few_labels_that_no_step_is_made_are_refused(learnt_from_few: Candidate, few: Task, tmp_path: Path) -> None:
    """How many there will be is not known beforehand."""
    stage = Finetune(id="f", epochs=1, batch_size=100, accumulation=9, pseudo_labels=0.95)
    stage.check(few, "s")
    with pytest.raises(RecipeError, match=r"^stages\[0\] 'stage'\.accumulation: 9 batches make one step, and in all "):
        stage.run(learnt_from_few, make_context(few, tmp_path, {}))
