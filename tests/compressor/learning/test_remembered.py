"""A teacher asked once about every sample says later what it would say then."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.learning import remembered as module
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.remembered import remembered
from edgesmith.compressor.learning.training_data import TrainingData
from edgesmith.compressor.stage import Context, Probe
from edgesmith.core.task import ArraySplit, Task

from ..conftest import make_context
from .test_teaching import Linear, candidate

SAMPLES = 150


def doubled(asked: list[int]) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    """Twice the input, which it spoils; notes how many samples it was asked about."""

    def ask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        answer = 2 * inputs["x"]
        inputs["x"].zero_()
        asked.append(len(answer))
        return answer

    return ask


@pytest.fixture
def data() -> TrainingData:
    values = np.arange(2 * SAMPLES, dtype=np.float32).reshape(-1, 2)
    return TrainingData(ArraySplit({"x": values[:100]}, np.zeros(100, np.int64)), ArraySplit({"x": values[100:]}))


def test_it_is_asked_once_in_the_order_of_the_data(
    data: TrainingData, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    shown: list[Any] = []

    @contextlib.contextmanager
    def bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        shown.append((title.rpartition(": ")[2], total))
        yield lambda done, detail: shown.append(done)

    monkeypatch.setattr(context.progress, "bar", bar)
    look_up = remembered(doubled(asked), data, context, "t")
    assert asked == [64, 64, 22]
    assert shown == [("asking t", SAMPLES), 64, 128, SAMPLES]
    indices = np.array([3, 17, 17, 99, 100, 149])
    inputs = data.batch(indices, None, 0, torch.device("cpu"))[0]
    answers = look_up(inputs)
    assert torch.equal(answers, 2 * inputs["x"])
    assert sum(asked) == SAMPLES


def test_what_it_has_not_seen_is_asked(data: TrainingData, context: Context) -> None:
    asked: list[int] = []
    look_up = remembered(doubled(asked), data, context, "t")
    known = data.batch(np.array([5]), None, 0, torch.device("cpu"))[0]["x"]
    answers = look_up({"x": torch.cat([known, torch.full((1, 2), -1.0)])})
    assert torch.equal(answers, torch.tensor([[20.0, 22.0], [-2.0, -2.0]]))
    assert asked[-1] == 2


def test_answers_too_large_to_keep_are_not_kept(
    data: TrainingData, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 8 * SAMPLES - 1)
    ask = doubled([])
    assert remembered(ask, data, context, "t") is ask
    monkeypatch.setattr(module, "_MOST_BYTES", 8 * SAMPLES)
    assert remembered(ask, data, context, "t") is not ask


@pytest.mark.parametrize(
    ("keys", "changes", "once"),
    [
        ({"epochs": 3}, {}, True),
        ({"epochs": 3, "augment": False}, {"augment": lambda inputs, generator: inputs}, True),
        ({"epochs": 3}, {"augment": lambda inputs, generator: inputs}, False),  # another view in every epoch
        ({"epochs": 1}, {}, False),
        ({"minutes": 0.02}, {}, True),
    ],
)
def test_a_stage_asks_once_where_nothing_changes(
    keys: dict[str, Any], changes: dict[str, Any], once: bool, original: Candidate, task: Task, tmp_path: Path
) -> None:
    task = dataclasses.replace(task, **{"augment": None} | changes)
    context = make_context(task, tmp_path, {"original": candidate(Counted, original, 1)})
    Counted.asked = 0
    Distill(id="d", **keys).run(candidate(Linear, original, 0), context)
    assert (Counted.asked == len(task.train)) == once


def test_the_lesson_is_the_same(
    original: Candidate, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without, up to how a batch's sums are rounded."""

    def weights() -> Mapping[str, torch.Tensor]:
        context = make_context(task, tmp_path, {"original": original})
        return Distill(id="d", epochs=2, augment=False).run(candidate(Linear, original, 0), context).weights

    once = weights()
    monkeypatch.setattr(module, "_MOST_BYTES", 0)
    each_time = weights()
    for name, value in once.items():
        torch.testing.assert_close(value, each_time[name], rtol=1e-4, atol=1e-5)


def test_the_plan_counts_it_once(task: Task) -> None:
    def seconds(**keys: Any) -> float:
        return Distill(id="d", epochs=4, **keys).estimate(task, probe)

    probe = Probe(forward=0.0, backward=0.0, export=0.0, named=lambda name: 1.0)
    assert (seconds(augment=False), seconds()) == (len(task.train), 4 * len(task.train))


class Counted(Linear):
    """Counts the samples it is asked about."""

    asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counted.asked += len(x)
        return super().forward(x)
