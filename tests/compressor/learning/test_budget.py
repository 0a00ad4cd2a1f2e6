"""Training by the clock: it ends in time, the learning rate follows the time, and a kill does not give it back.

The clock here is one that ticks once per step, so that every number can be said beforehand.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning import budget, training
from edgesmith.compressor.learning.budget import Epochs, Minutes
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.stage import Context, Probe
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import Task

from ..conftest import Killed

STEPS = 16  # per epoch of 1,077 images in batches of 64


class Clock:
    """Seconds are steps; the learning rate of each is kept."""

    def __init__(self) -> None:
        self.now, self.rates, self.die_at = 1000.0, list[float](), 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, step = Clock(), training._Loop._train_step

    def timed(loop: training._Loop, indices: np.ndarray) -> torch.Tensor:
        if clock.die_at and len(clock.rates) == clock.die_at:
            clock.die_at = 0
            raise Killed
        clock.rates.append(loop._optimizer.param_groups[0]["lr"])
        clock.now += 1
        return step(loop, indices)

    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(training._Loop, "_train_step", timed)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    return clock


KEYS: dict[str, Any] = {"id": "t", "minutes": 0.5, "learning_rate": 1e-3, "schedule": "linear", "warmup": 0.1}


def test_it_ends_with_the_time_in_the_middle_of_an_epoch(original: Candidate, context: Context, clock: Clock) -> None:
    """Thirty seconds are thirty steps: one epoch and 14 steps of the second; what is kept is said, and that it differs."""
    Finetune(**KEYS).run(original, context)
    assert len(clock.rates) == 30
    assert context.notes[0].endswith(" of 2, 0.5 minutes by the clock: a second run differs")


def test_the_learning_rate_follows_the_time(original: Candidate, context: Context, clock: Clock) -> None:
    """A tenth to warm up, then down in a line to nothing at the end."""
    Finetune(**KEYS).run(original, context)
    shares = np.arange(30) / 30
    expected = 1e-3 * np.minimum(1, shares / 0.1) * (1 - shares)
    np.testing.assert_allclose(clock.rates, expected, atol=1e-9)


def test_a_killed_training_has_what_was_left(original: Candidate, context: Context, clock: Clock) -> None:
    """Dies at step 20; the process that goes on, an hour later, has ten seconds, and the rate goes on too."""
    clock.die_at = 20
    with pytest.raises(Killed):
        Distill(**KEYS).run(original, context)
    clock.now += 3600
    Distill(**KEYS).run(original, context)
    assert len(clock.rates) == 30
    assert clock.rates[20] == pytest.approx(1e-3 * (1 - 20 / 30), rel=1e-6)
    assert clock.rates[29] == pytest.approx(1e-3 * (1 - 29 / 30), rel=1e-6)


def test_ranges_stand_in_epochs_that_begin_after_their_share(
    original: Candidate, context: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs begin at 0, 16 and 32 of 36 seconds; ranges stand from 0.8 on, which is in the third."""
    seen: list[bool] = []
    run = training._Loop._run_epoch

    def watched(loop: training._Loop, advance: Any) -> None:
        run(loop, advance)
        seen.append(loop._module.standing)  # type: ignore[arg-type]  # of FakeQuantized

    monkeypatch.setattr(training._Loop, "_run_epoch", watched)
    monkeypatch.setattr(QuantizationAwareTraining, "_handed_over", lambda *rest: None)  # only the training is looked at
    QuantizationAwareTraining(id="q", minutes=0.6, freeze_after=0.8).run(original, context)
    assert seen == [False, False, True]


def test_shares_of_epochs() -> None:
    counted = Epochs(4, 10, 2)
    assert [counted.begun(epoch) for epoch in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [counted.left(epoch) for epoch in (0, 3, 4)] == [True, True, False]
    assert [counted.done(step) for step in (0, 10, 20, 30)] == [0, 0.5, 1, 1]
    assert [counted.warm(step, 0.2) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    assert counted.progress(1, 5) == (15, 40, "epoch 2/4")


def test_shares_of_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    timed = Minutes(2.0)
    now[0] += 30
    assert (timed.spent, timed.done(99), timed.left(99)) == (30, 0.25, True)
    assert timed.warm(0, 0.5) == 0.5
    assert timed.warm(0, 0.0) == 1.0
    assert timed.progress(3, 1) == (30, 120, "epoch 4, 0.5 of 2 minutes,")
    timed.spent = 90.0
    now[0] += 40
    assert (timed.spent, timed.done(0), timed.left(0)) == (130, 1.0, False)


def test_the_plan_takes_the_time_that_was_asked_for(task: Task) -> None:
    probe = Probe(forward=1e-3, backward=2e-3, export=1.0)
    assert Distill(id="d", minutes=5).estimate(task, probe) == 300
    assert Finetune(id="d", minutes=5).estimate(task, probe) == 300


@pytest.mark.parametrize("stage", [Finetune, Distill, QuantizationAwareTraining])
def test_epochs_and_minutes_are_refused_together(stage: Any, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        stage(id="t", epochs=3, minutes=1.0).check(task, "w")
    assert str(caught.value) == "w: set epochs or minutes, not both"
