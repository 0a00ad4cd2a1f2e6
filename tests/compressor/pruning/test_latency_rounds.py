"""Pruning to a time: the rounds of solving and measuring, and where they end."""

import dataclasses
from typing import Any

import pytest

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning import prune_to_latency
from edgesmith.compressor.pruning.latency_allocation import Damage
from edgesmith.compressor.pruning.latency_model import LatencyModel
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context

from .conftest import cost


def test_a_plan_that_comes_back_unchanged_ends_the_rounds(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest but one is far below the goal, and nothing lies between: no aim brings another."""
    solved: list[float] = []
    solve = prune_to_latency.allocate

    def counted(model: LatencyModel, damage: Damage, time: float, _: object) -> Any:
        assert len(solved) < 3, "solved in a loop"
        solved.append(time)
        return solve(model, damage, 0.5)

    monkeypatch.setattr(prune_to_latency, "allocate", counted)
    result = Prune(id="prune", round_to=2, latency_ratio=0.9).run(original, context)
    assert len(clock) == 1 and len(solved) == 2
    assert cost(result) * 1.2 / cost(original) == pytest.approx(clock[0])


def test_the_next_search_starts_where_the_model_was_corrected_to(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deployed is slower than what the model knows, and the first network tried has shown by how much."""
    starts: list[float] = []
    confirmed = prune_to_latency._Rounds.confirmed

    def counted(*given: Any) -> Any:
        before = len(clock)
        found = confirmed(*given)
        starts.extend(clock[before : before + 1])
        return found

    monkeypatch.setattr(prune_to_latency._Rounds, "confirmed", counted)
    monkeypatch.setattr(prune_to_latency.plan_trials, "best", lambda plans, *_: plans[0])
    Prune(id="prune", round_to=2, latency_ratio=0.6, trial_epochs=1).run(original, context)
    assert len(starts) > 1
    assert starts[0] > 0.66 and all(abs(start - 0.6) < 0.04 for start in starts[1:])


def test_what_is_not_proven_is_said(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = prune_to_latency.allocate

    def stopped(*given: Any) -> Any:
        found = solve(*given)
        return found and dataclasses.replace(found, gap=0.042)

    monkeypatch.setattr(prune_to_latency, "allocate", stopped)
    Prune(id="prune", round_to=2, latency_ratio=0.6).run(original, context)
    (note,) = (note for note in context.notes if "as deployed" in note)
    assert note.endswith(" at most, and up to 4.2% of it may be needless: the solver's time ran out")
