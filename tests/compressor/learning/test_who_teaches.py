"""Before any work: a teacher that answers in another way than the student is refused, any other is let pass."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor import job
from edgesmith.compressor.learning import teaching
from edgesmith.compressor.stage import Machine
from edgesmith.core.errors import EdgesmithError
from edgesmith.core.task import Task


class Small(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.flatten(1))


class Seven(Small):
    def __init__(self) -> None:
        super().__init__(7)


class Two(Small):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        answers = super().forward(image)
        return answers, answers


class Larger(Small):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.reshape(-1, 1, 16, 16).flatten(1))


MODELS = {"small": Small, "seven": Seven, "two": Two, "larger": Larger}


def prepared(task: Task, *stages: dict[str, object], models: Mapping[str, Any] = MODELS) -> job.Job:
    some = dataclasses.replace(task, models=models)
    recipe = {"task": "task.py", "stages": [*stages, {"use": "export", "id": "last"}], "limits": {"drop": 0.1}}
    return job.prepare(recipe, some, machine=Machine())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("teacher.pkl", "is a pickle, which runs whatever code it holds"),
        ("teacher.onnx", "not an ONNX file, or truncated"),
    ],
)
def test_a_file_is_looked_at_before_a_runtime_is(
    name: str, message: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "OnnxRuntimeSession", None)
    (tmp_path / name).write_bytes(b"\x80\x04 no model")
    with pytest.raises(EdgesmithError) as caught:
        prepared(task, {"use": "distill", "teacher": "file"}, models={"file": tmp_path / name})
    assert message in str(caught.value)


def test_a_quantized_stage_may_teach(task: Task) -> None:
    """It is a file that is not there yet, so that nothing of it can be asked."""
    found = prepared(
        task, {"use": "export"}, {"use": "quantize"}, {"use": "distill", "student": "small", "teacher": "quantize"}
    )
    assert set(found.rehearsed) == {"original", "export", "quantize", "distill", "last"}


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("seven", "stages[0] 'distill': output 'logits' is (2, 10) for the student, (2, 7) for teacher 'seven'; they must agree"),
        ("two", "stages[0] 'distill': teacher 'two': the model returns 2 value(s) "),
        ("larger", "stages[0] 'distill': teacher 'larger' raised RuntimeError: shape "),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_is_named(teacher: str, message: str, task: Task) -> None:
    with pytest.raises(EdgesmithError) as caught:
        prepared(task, {"use": "distill", "teacher": teacher})
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2
