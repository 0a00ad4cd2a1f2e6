"""The plan's estimate: every stage is counted with the network it works on."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor import job, plan
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Graph, Machine, Probe
from edgesmith.core.task import ArraySplit, Task


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


class Large(Tiny):
    """A teacher."""


SECONDS = {"DigitsNet": 3e-3, "Tiny": 1e-3, "Large": 10e-3}
SAMPLES, VALIDATION = 1077, 360


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass takes what `SECONDS` says, a backward pass twice that; a block less is a tenth less."""

    def measured(value: Candidate | Graph, *rest: Any) -> Probe:
        assert isinstance(value, Candidate)
        seconds = SECONDS[type(value.module()).__name__] * 0.9 ** len(value.edits)
        return Probe(forward=seconds, backward=2 * seconds, export=1.0)

    monkeypatch.setattr(plan, "measured", measured)
    monkeypatch.setattr(plan, "pace_of", lambda stage, *rest: 0.5 if stage.mixed_precision == "bf16" else 1.0)
    monkeypatch.setattr(plan, "_of_model", lambda name, task, machine: SECONDS[task.models[name].__name__])


def planned(task: Task, *stages: dict[str, Any]) -> dict[str, float]:
    recipe = {"task": "task.py", "stages": [*stages, {"use": "export"}], "limits": {"drop": 0.1}}
    task = dataclasses.replace(task, models={"tiny": Tiny, "large": Large})
    prepared = job.prepare(recipe, task, machine=Machine())
    seconds = plan.estimates(prepared.recipe, task, prepared.machine, prepared.rehearsed)[1]
    return {stage.id: each for stage, each in zip(prepared.recipe.stages, seconds, strict=True)}


def training(student: float, teachers: float, epochs: int, samples: int = SAMPLES) -> float:
    """By hand: forward and backward of the student, forward of the teachers, and a validation after every epoch."""
    return epochs * samples * (3 * student + teachers) + (epochs + 1) * VALIDATION * student


def test_a_pruned_student_costs_less_than_its_teacher(task: Task) -> None:
    """It was counted as if nothing had been pruned, which made the plan of the usual recipe too long."""
    found = planned(task, {"use": "prune", "macs_ratio": 0.36, "round_to": 1}, {"use": "distill", "epochs": 4})
    full = SECONDS["DigitsNet"]
    assert found["distill"] == pytest.approx(training(0.6 * full, full, 4))


def test_precision_and_layout_count(task: Task) -> None:
    """bfloat16 and channels_last halve a ResNet's training, and the plan had not heard of them."""
    found = planned(task, {"use": "distill", "epochs": 2, "mixed_precision": "bf16"})
    full = SECONDS["DigitsNet"]
    assert found["distill"] == pytest.approx(0.5 * training(full, full, 2))


def test_a_pace_is_measured_in_the_stages_settings(
    original: Candidate, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a pass takes one second, and two where autocast is on."""
    monkeypatch.undo()
    ticks = [0.0]

    def passed(module: nn.Module, tensors: Any, task: Task) -> None:
        ticks[0] += 1.0 + torch.is_autocast_enabled("cpu")

    monkeypatch.setattr(plan, "_train_pass", passed)
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: ticks[0]))
    plain, half = Finetune(id="f"), Finetune(id="f", mixed_precision="bf16")
    assert plan.pace_of(plain, original, task, Machine()) == 1.0
    assert plan.pace_of(half, original, task, Machine()) == 2.0


def test_every_pruning_counts(task: Task) -> None:
    prune = {"use": "prune", "macs_ratio": 0.64, "round_to": 1}
    found = planned(
        task,
        {**prune, "id": "p1"},
        {"use": "finetune", "id": "f1", "epochs": 1},
        {**prune, "id": "p2"},
        {"use": "finetune", "id": "f2", "epochs": 1},
    )
    full = SECONDS["DigitsNet"]
    assert found["f1"] == pytest.approx(training(0.8 * full, 0, 1))
    assert found["f2"] == pytest.approx(training(0.64 * full, 0, 1))


def test_blocks_that_leave_are_measured(task: Task) -> None:
    found = planned(task, {"use": "prune-blocks", "blocks": ["stage1.1"]}, {"use": "distill", "epochs": 1})
    full = SECONDS["DigitsNet"]
    assert found["distill"] == pytest.approx(training(0.9 * full, full, 1))


def test_a_student_and_its_teachers_are_counted_as_they_are(task: Task) -> None:
    lesson = {"use": "distill", "student": "tiny", "epochs": 1, "teachers": ["original", "large"]}
    found = planned(task, {"use": "prune", "macs_ratio": 0.64, "round_to": 1}, lesson)
    teachers = SECONDS["DigitsNet"] + SECONDS["Large"]
    assert found["distill"] == pytest.approx(training(SECONDS["Tiny"], teachers, 1))


def test_an_earlier_stage_teaches_at_its_own_cost(task: Task) -> None:
    found = planned(
        task,
        {"use": "prune", "macs_ratio": 0.64, "round_to": 1},
        {"use": "distill", "student": "tiny", "epochs": 1, "teacher": "prune"},
    )
    assert found["distill"] == pytest.approx(training(SECONDS["Tiny"], 0.8 * SECONDS["DigitsNet"], 1))


def test_a_comparison_is_a_second_training(task: Task) -> None:
    """Without a teacher, and on labelled samples alone."""
    more = dataclasses.replace(task, unlabelled=ArraySplit({"image": task.test.inputs["image"]}))
    found = planned(more, {"use": "distill", "epochs": 2, "compare": True})
    full = SECONDS["DigitsNet"]
    expected = training(full, full, 2, SAMPLES + len(task.test)) + training(full, 0, 2)
    assert found["distill"] == pytest.approx(expected)


def test_the_root_of_the_macs_is_what_is_left_of_the_time(task: Task) -> None:
    assert Prune(id="p", macs_ratio=0.25).time_left() == 0.5
    assert Prune(id="p", channel_ratio=0.5).time_left() == 0.5  # of the width itself
    assert math.isclose(Prune(id="p", params_ratio=0.49).time_left(), 0.7)


def test_a_pass_is_measured(original: Candidate, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one: a training pass takes longer than one without gradients, and the module keeps its weights."""
    monkeypatch.undo()
    before = original.digest()
    found = plan.measured(original, task, Machine(), trains=True)
    assert 0 < found.forward < 0.1
    assert found.backward > 0
    assert original.digest() == before
    assert plan.measured(original, task, Machine(), trains=False).backward == 0
