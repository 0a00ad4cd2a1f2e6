"""A task's slices, and what is said of those that cannot be used."""

from typing import Any

import numpy as np
import pytest

import edgesmith
from edgesmith.compressor.predictions import slice_masks
from edgesmith.core.errors import TaskError

VALUES = np.linspace(0, 1, 600, dtype=np.float32)


def task(**slices: Any) -> edgesmith.Task:
    split = edgesmith.ArraySplit({"x": VALUES}, (VALUES > 0.5).astype(int))
    return edgesmith.Task(name="t", model="model.onnx", test=split, slices=slices)


def test_an_array_and_a_function_in_batches() -> None:
    found = slice_masks(task(given=VALUES > 0.9, asked=lambda inputs, labels: (inputs["x"] > 0.25) & (labels == 0)))
    assert (found["given"].sum(), found["asked"].sum()) == (60, 150)
    assert np.array_equal(found["asked"], (VALUES > 0.25) & (VALUES <= 0.5))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (VALUES, "float32 (600,); it must say True or False of each of the 600 test samples, bool (600,)"),
        (VALUES[1:] > 0, "bool (599,); it must say True or False of each of the 600 test samples, bool (600,)"),
        (VALUES > 2, "no test sample is in it; take it out, or mend what it looks for"),
        (lambda inputs, labels: inputs["y"], "raised KeyError: 'y' (test_slices.py, line 32)"),
    ],
)
def test_what_is_no_slice(given: Any, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        slice_masks(task(dark=given))
    assert str(caught.value) == f"task 't': slices['dark']{' ' if text.startswith('raised') else ': '}{text}"
