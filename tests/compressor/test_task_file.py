"""The user's task: found, run, and looked at before any work."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor import task_file
from edgesmith.core.errors import DataError, ExitCode, TaskError
from edgesmith.core.task import ArraySplit, Task

MINIMAL = """
import numpy as np
import torch
import edgesmith

def task():
    split = edgesmith.ArraySplit({"x": np.ones((4, 3), np.float32)}, np.arange(4))
    return edgesmith.Task(name="t", model=lambda: torch.nn.Linear(3, 4), test=split)
"""


def load(folder: Path, source: str, reference: str = "task.py") -> Task:
    (folder / "task.py").write_text(source)
    return task_file.load_task(reference, folder)


def refusal(folder: Path, source: str, reference: str = "task.py") -> str:
    with pytest.raises(TaskError) as caught:
        load(folder, source, reference)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value).replace(str(folder), "DIR")


def test_a_task_is_found_by_file_and_function(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).name == "t"
    assert load(tmp_path, MINIMAL.replace("def task", "def other"), "task.py:other").name == "t"


def test_a_task_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "my_networks.py").write_text("name = 'from a neighbour'\n")
    assert load(tmp_path, MINIMAL.replace('name="t"', "name=__import__('my_networks').name")).name == "from a neighbour"


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [
        (MINIMAL, "tusk.py", 'task = "tusk.py": no file DIR/tusk.py'),
        (MINIMAL, "task.py:tsk", "DIR/task.py: no function 'tsk'; define it, or name another one: \"task.py:task\""),
        ("def _a(): ...\ndef b(x): ...\ndef c(x=1): ...\ndef d(): ...", "task.py", "DIR/task.py: no function 'task'; define it, or name another one: \"task.py:c\", \"task.py:d\""),
        ("x = 1", "task.py", "DIR/task.py: no function 'task'; define it, or name another one as \"task.py:function\""),
        ("import nothing_like_this", "task.py", "DIR/task.py raised ModuleNotFoundError: No module named 'nothing_like_this' (task.py, line 1)"),
        ("def task():\n    x = 1\n    return x / 0", "task.py", "DIR/task.py: task() raised ZeroDivisionError: division by zero (task.py, line 3)"),
        ("def task(): return 3", "task.py", "DIR/task.py: task() must return an edgesmith.Task, it returned int"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_is_said(source: str, reference: str, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, source, reference) == message


def digits_with(task: Task, **changes: Any) -> Task:
    return dataclasses.replace(task, **changes)


def test_nan_in_data_is_found(task: Task) -> None:
    images = np.zeros((4, 1, 8, 8), np.float32)
    images[2, 0, 1, 1] = np.nan
    changed = digits_with(task, calibration=ArraySplit({"image": images}))
    with pytest.raises(
        DataError, match=r"task 'digits': 'calibration' split: input 'image' holds NaN or infinity, first in sample 2"
    ):
        task_file.check_data(changed)


def test_splits_must_have_the_same_inputs(task: Task) -> None:
    changed = digits_with(task, train=ArraySplit({"image": np.zeros((4, 1, 9, 8), np.float32)}, np.zeros(4, np.int64)))
    with pytest.raises(
        DataError,
        match=r"'train' split: inputs are image float32 \(1, 9, 8\), those of the 'test' split are image float32 \(1, 8, 8\)",
    ):
        task_file.check_data(changed)


def test_splits_must_have_their_inputs_in_the_same_order(task: Task) -> None:
    """Modules are called by position: a training split in another order taught the network something else."""
    images = task.test.inputs["image"]
    two = ArraySplit({"a": images, "b": images}, task.test.labels)
    swapped = ArraySplit({"b": images, "a": images}, task.test.labels)
    task_file.check_data(digits_with(task, train=two, validation=two, test=two, calibration=None))
    with pytest.raises(DataError) as caught:
        task_file.check_data(digits_with(task, train=swapped, validation=two, test=two, calibration=None))
    shape = "float32 (1, 8, 8)"
    assert str(caught.value) == (
        f"task 'digits': 'train' split: inputs are b {shape}, a {shape}, those of the 'test' split are a {shape}, b {shape}; "
        "they must agree, and stand in the same order"
    )


def test_a_file_reads_its_inputs_by_name(task: Task) -> None:
    images = task.test.inputs["image"]
    two, swapped = (ArraySplit(dict.fromkeys(names, images), task.test.labels) for names in ("ab", "ba"))
    task_file.check_data(digits_with(task, model="a.onnx", train=swapped, validation=two, test=two, calibration=None))


def test_an_empty_split_is_refused(task: Task) -> None:
    empty = ArraySplit({"image": np.zeros((0, 1, 8, 8), np.float32)}, np.zeros(0, np.int64))
    with pytest.raises(TaskError, match="the 'validation' split is empty"):
        task_file.check_data(digits_with(task, validation=empty))


def test_outputs_that_do_not_fit_the_labels(task: Task) -> None:
    labels = task.test.labels.copy()
    labels[7] = 12
    changed = digits_with(task, test=ArraySplit(task.test.inputs, labels))
    with pytest.raises(DataError, match=r"task 'digits': 'test' split: .*12"):
        task_file.check_outputs(changed, {"logits": np.zeros((4, 10), np.float32)})
    task_file.check_outputs(task, {"logits": np.zeros((4, 10), np.float32)})


def test_names_of_classes_that_do_not_fit_the_output_are_refused(tmp_path: Path) -> None:
    task = dataclasses.replace(load(tmp_path, MINIMAL), outputs=("logits",), classes=("cat", "dog"))
    with pytest.raises(TaskError) as caught:
        task_file.check_outputs(task, {"logits": np.zeros((4, 10), np.float32)})
    assert str(caught.value) == (
        "task 't': classes= names 2 classes, but the model's output 'logits' is (4, 10) for 4 samples; "
        "name one for each column"
    )
    named = dataclasses.replace(task, classes=tuple("abcdefghij"))
    assert task_file.identity(named) != task_file.identity(task)
    task_file.check_outputs(named, {"logits": np.zeros((4, 10), np.float32)})


def test_identity_follows_data_choices_and_source(task: Task, tmp_path: Path) -> None:
    base = task_file.identity(task)
    assert task_file.identity(digits_with(task)) == base
    images = task.test.inputs["image"].copy()
    images[0, 0, 0, 0] += 1
    assert task_file.identity(digits_with(task, test=ArraySplit({"image": images}, task.test.labels))) != base
    assert task_file.identity(digits_with(task, metrics=("f1-macro",))) != base
    first = task_file.identity(load(tmp_path, MINIMAL))
    assert task_file.identity(load(tmp_path, MINIMAL)) == first
    assert task_file.identity(load(tmp_path, MINIMAL.replace("Linear(3, 4)", "Linear(3, 4, bias=False)"))) != first


class Noisy:
    """A split that does not hold its arrays."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def __len__(self) -> int:
        return 1000

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        return {"image": np.full((len(indices), 1, 8, 8), self.shift, np.float32)}, np.zeros(len(indices), np.int64)


def test_splits_of_the_users_own_are_identified_by_samples(task: Task) -> None:
    first, second = (task_file.identity(digits_with(task, train=Noisy(shift))) for shift in (0.0, 1.0))
    assert first != second


def test_a_partial_of_a_class_is_identified_by_the_class(task: Task) -> None:
    assert task_file.identity(digits_with(task, model=functools.partial(nn.Linear, 3, 4))) != task_file.identity(task)
    assert task_file.identity(digits_with(task, model=functools.partial(nn.Linear, 3, 4))) != task_file.identity(
        digits_with(task, model=functools.partial(nn.Linear, 3, 5))
    )


def test_a_model_that_cannot_run_on_the_data_is_the_tasks_fault(task: Task) -> None:
    with pytest.raises(TaskError, match="the model, on its own data, raised RuntimeError: "):
        task_file.run_user_code(lambda: nn.Linear(3, 3)(torch.zeros(2, 4)), "the model, on its own data,")
