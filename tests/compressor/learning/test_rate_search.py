"""The search of a learning rate: trials start alike, validation chooses, what diverges is out, a kill changes nothing."""

import dataclasses
from typing import Any

import pytest
import torch

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import RecipeError, TrainingError
from edgesmith.core.task import Task

from ..conftest import Killed, kill_training

FAST: dict[str, Any] = {"id": "t", "epochs": 2, "batch_size": 32}


@pytest.fixture
def untrained(original: Candidate, task: Task) -> Candidate:
    torch.manual_seed(1)
    return dataclasses.replace(original, weights=dict(task.model().state_dict()))


def test_a_rate_that_crawls_and_one_that_diverges_lose(untrained: Candidate, context: Context) -> None:
    Finetune(**FAST, learning_rates=(1e-6, 0.003, 1e25)).run(untrained, context)
    first, second = context.notes
    assert first.startswith("learning rate 0.003, the best of (accuracy on validation): 1e-06 0.")
    assert first.endswith(", 1e+25 diverges")
    crawled, learnt = (float(first.split(f"{rate} ")[1].split(",")[0]) for rate in (": 1e-06", ", 0.003"))
    assert learnt > crawled + 0.2
    assert second.startswith("best epoch ")


def test_what_follows_is_the_training_at_that_rate(untrained: Candidate, context: Context) -> None:
    found = Finetune(**FAST, learning_rates=(1e-6, 0.003)).run(untrained, context)
    alone = Finetune(**FAST, learning_rate=0.003).run(untrained, context.within("alone"))
    assert found.digest() == alone.digest()


def test_all_diverge(untrained: Candidate, context: Context) -> None:
    with pytest.raises(TrainingError) as caught:
        Finetune(**FAST, learning_rates=(1e25, 1e30)).run(untrained, context)
    assert str(caught.value) == "stages[0] 'stage'.learning_rates: every one diverges; give lower ones"


def test_a_killed_search_ends_with_the_same_weights(
    untrained: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Finetune(**FAST, learning_rates=(1e-6, 0.003))
    whole = stage.run(untrained, context.within("whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_training(patch, 12)
        stage.run(untrained, context)
    assert stage.run(untrained, context).digest() == whole.digest()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"learning_rates": (1e-3, 1e-2), "learning_rate": 0.1}, "w: set learning_rate or learning_rates, not both"),
        ({"learning_rates": (1e-3,)}, "w.learning_rates: one rate leaves no choice; set learning_rate = ... instead"),
        ({"learning_rates": (1e-3, 1e-3)}, "w.learning_rates: [0.001, 0.001] names a rate twice"),
        ({"search_epochs": 2}, "w.search_epochs: nothing reads it without learning_rates"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], text: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", **keys).check(task, "w")
    assert str(caught.value) == text
