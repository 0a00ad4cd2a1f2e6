"""Several plans for one time: each is trained for a little, and validation data choose."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.pruning import plan_trials
from edgesmith.compressor.pruning.latency_allocation import Damage
from edgesmith.compressor.pruning.latency_model import Plan
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import RecipeError, TrainingError
from edgesmith.core.task import Task

from .conftest import cost

WHOLE, LESS = Plan(), Plan(gone=("block",))


def test_the_price_of_blocks_is_not_that_of_channels() -> None:
    damage = Damage(groups={"a": {8: 0.0, 4: 0.1}}, blocks={"b": 0.4})
    assert plan_trials.priced(damage, 0.25) == Damage(groups=damage.groups, blocks={"b": 0.1})


@pytest.mark.parametrize("order", [(WHOLE, LESS), (LESS, WHOLE)])
def test_what_learns_is_taken(order: Sequence[Plan], original: Candidate, context: Context) -> None:
    """A network whose last layer can never learn again, since all in front of it says zero, against the trained one."""
    dead = {name: torch.zeros_like(tensor) for name, tensor in original.weights.items()}
    broken = dataclasses.replace(original, weights=dead)
    assert plan_trials.best(order, lambda plan: original if plan == LESS else broken, 1, context) == LESS
    (note,) = context.notes
    assert note.startswith(f"plan {1 + order.index(LESS)}, the best after 1 epoch(s) (accuracy on validation): 1 (with")
    assert "(without block) 0.9" in note and "(with every block) 0.1" in note


def test_plans_are_made_at_several_prices_and_meet_the_goal(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Plan] = []
    best = plan_trials.best

    def watched(plans: Sequence[Plan], *given: object) -> Plan:
        tried.extend(plans)
        return best(plans, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(plan_trials, "best", watched)
    monkeypatch.setattr(plan_trials, "PRICES", (1.0, 0.0, 1000.0))  # a block that costs nothing, and one that costs all
    result = Prune(id="prune", round_to=2, latency_ratio=0.6, trial_epochs=1).run(original, context)
    assert len(tried) >= 2 and len({plan.gone for plan in tried}) >= 2, "blocks leave in one and stay in another"
    assert cost(result) * 1.2 / cost(original) <= 0.6
    assert sum("as deployed" in note for note in context.notes) == 1
    assert any("the best after 1 epoch(s)" in note for note in context.notes)


def test_a_plan_that_diverges_is_out(original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Finetune.run
    diverging = {original.digest()}

    def diverges(stage: Finetune, value: Candidate, trial: Context) -> Candidate:
        if value.digest() in diverging:
            raise TrainingError("the loss became nan")
        return run(stage, value, trial)

    monkeypatch.setattr(Finetune, "run", diverges)
    other = dataclasses.replace(original, weights={k: 0.5 * v for k, v in original.weights.items()})
    networks = [(WHOLE, original), (LESS, other)]

    def without(plan: Plan) -> Candidate:
        return next(network for each, network in networks if each == plan)

    assert plan_trials.best([WHOLE, LESS], without, 1, context) == LESS
    assert "1 (with every block) diverges" in context.notes[0]
    diverging.add(other.digest())
    with pytest.raises(TrainingError) as caught:
        plan_trials.best([WHOLE, LESS], without, 1, context)
    assert str(caught.value) == (
        "stages[0] 'stage'.trial_epochs: every plan diverges as `finetune` trains by itself; leave trial_epochs out"
    )


def test_one_plan_alone_is_not_tried(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_trials, "PRICES", (1.0, 1.0))
    Prune(id="prune", round_to=8, latency_ratio=0.8, trial_epochs=1).run(original, context)
    assert "no plan is tried: blocks at any price give the same one" in context.notes


@pytest.mark.parametrize("keys", [{"macs_ratio": 0.5}, {"latency_ratio": 0.5, "blocks": ()}])
def test_without_a_latency_and_blocks_there_are_no_plans_to_try(keys: dict[str, Any], task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Prune(id="prune", trial_epochs=1, **keys).check(task, "w")
    assert str(caught.value) == "w.trial_epochs: only plans for a latency in which blocks may leave are tried"


def test_a_network_without_blocks_has_no_plans_to_try(context: Context) -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )
    example = {"image": torch.zeros(2, 1, 8, 8)}
    plain = Candidate(factory=lambda: copy.deepcopy(module), example=example, edits=(), weights=state_of(module))
    with pytest.raises(RecipeError) as caught:
        Prune(id="prune", latency_ratio=0.5, trial_epochs=1).rehearse(plain, context)
    assert str(caught.value) == "stages[0] 'stage'.trial_epochs: no block of this network may leave; leave it out"
