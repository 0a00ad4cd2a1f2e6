"""The user's problem: splits, and the words for what is missing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.core.errors import DataError, TaskError
from edgesmith.core.task import SPLITS, ArraySplit, Task
from edgesmith.core.values import TensorSpec


def split(count: int) -> ArraySplit:
    images = np.arange(count * 8, dtype=np.float32).reshape(count, 2, 4)
    return ArraySplit(inputs={"image": images, "mask": np.ones((count, 3), np.int64)}, labels=np.arange(count))


def task(**changes: Any) -> Task:
    return dataclasses.replace(Task(name="digits", model=lambda: None, test=split(5)), **changes)


def test_a_batch_holds_the_samples_asked_for_in_that_order() -> None:
    inputs, labels = split(5).batch(np.array([3, 0]))
    assert inputs["image"][:, 0, 0].tolist() == [24.0, 0.0]
    assert inputs["mask"].shape == (2, 3)
    assert labels is not None
    assert labels.tolist() == [3, 0]
    assert len(split(5)) == 5


def test_a_split_may_lack_labels() -> None:
    inputs, labels = ArraySplit(inputs={"image": np.zeros((2, 3))}).batch(np.array([1]))
    assert (inputs["image"].shape, labels) == ((1, 3), None)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (
            {"image": np.zeros((4, 2)), "mask": np.zeros((3, 2))},
            None,
            "ArraySplit: every array needs the same number of samples on axis 0, got {'image': 4, 'mask': 3}",
        ),
        (
            {"image": np.zeros((4, 2))},
            np.zeros(5),
            "ArraySplit: every array needs the same number of samples on axis 0, got {'image': 4, 'labels': 5}",
        ),
        ({}, None, "ArraySplit: every array needs the same number of samples on axis 0, got {}"),
        (
            {"image": np.array(1.0)},
            None,
            "ArraySplit: 'image' is a numpy.ndarray without axes; give a numpy array with the samples on axis 0",
        ),
        (
            {"image": torch.zeros(2, 3)},
            None,
            "ArraySplit: 'image' is a torch.Tensor; give a numpy array with the samples on axis 0",
        ),
        (
            {"image": np.zeros((2, 2))},
            [0, 1],
            "ArraySplit: 'labels' is a list; give a numpy array with the samples on axis 0",
        ),
    ],
)
def test_arrays_that_do_not_fit(inputs: dict[str, Any], labels: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        ArraySplit(inputs=inputs, labels=labels)
    assert str(caught.value) == message


def test_the_splits_a_task_may_have() -> None:
    assert set(SPLITS) <= {field.name for field in dataclasses.fields(Task)}
    whole = task(**{name: split(index + 1) for index, name in enumerate(SPLITS)})
    assert [len(whole.split(name, "this test")) for name in SPLITS] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "test"])
def test_a_missing_split_is_named_with_who_needs_it(name: str) -> None:
    with pytest.raises(TaskError) as caught:
        task().split(name, "stage 'distill'")
    assert str(caught.value) == f"task 'digits': stage 'distill' needs the '{name}' split; set {name}= in the task"


def test_an_empty_split_is_as_good_as_none() -> None:
    with pytest.raises(TaskError) as caught:
        task(train=split(0)).split("train", "stage 'distill'")
    assert str(caught.value) == "task 'digits': the 'train' split is empty, and stage 'distill' needs it"


def test_inputs_are_described_as_the_test_split_feeds_them() -> None:
    assert task().input_specs() == (
        TensorSpec(name="image", dtype="float32", shape=("batch", 2, 4)),
        TensorSpec(name="mask", dtype="int64", shape=("batch", 3)),
    )


def test_inputs_cannot_be_described_without_a_sample() -> None:
    with pytest.raises(TaskError) as caught:
        task(test=split(0)).input_specs()
    assert str(caught.value) == "task 'digits': the 'test' split is empty, and the shape of the inputs needs it"


def test_names_and_texts_may_be_arrays() -> None:
    """As label encoders and tables give them."""
    found = task(classes=np.array([3, 5]), texts=np.array(["a", "b"]))
    assert (found.classes, found.texts) == (("3", "5"), ("a", "b"))
