"""Pruning to a time and a share of the parameters together."""

import dataclasses
import re
from typing import Any

import pytest

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning import deployed, prune_to_latency
from edgesmith.compressor.pruning.latency_model import LatencyModel
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import UnreachableError
from edgesmith.core.values import Artifact

from .conftest import WHOLE_MS, cost


@pytest.mark.parametrize("time", [0.6, 3.0])
def test_a_size_is_met_beside_the_time(time: float, clock: list[float], original: Candidate, context: Context) -> None:
    """However loose the time is, and where it alone would have left more parameters."""
    free = Prune(id="prune", round_to=2, latency_ms=time * WHOLE_MS).run(original, context)
    result = Prune(id="prune", round_to=2, latency_ms=time * WHOLE_MS, params_ratio=0.35).run(original, context)
    whole = original.parameters()
    assert free.parameters() > 0.36 * whole
    assert 0.3 * whole < result.parameters() <= 0.35 * whole
    assert cost(result) * 1.2 / cost(original) <= time
    assert any(re.search(r"asked; 0\.3\d+ of the parameters, 0\.35 asked; loss ", note) for note in context.notes)


def test_a_size_below_everything_is_refused_with_the_best_there_is(
    clock: list[float], original: Candidate, context: Context
) -> None:
    with pytest.raises(
        UnreachableError,
        match=r"^stages\[0\] 'stage'\.params_ratio: 0\.001 cannot be reached; the fewest that can be left are 0\.0\d+; "
        r"ask for more, lower round_to, or let more layers and blocks go$",
    ):
        Prune(id="prune", latency_ratio=0.6, params_ratio=0.001).rehearse(original, context)
    assert clock == []


def test_what_has_too_many_parameters_is_not_timed(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However wrong the model of parameters."""
    fitted, timed = prune_to_latency.fit, []

    def fit(structure: Any, plans: Any, values: Any) -> LatencyModel:
        model = fitted(structure, plans, values)
        too_few = tuple(0.7 * weight for weight in model.weights)
        return dataclasses.replace(model, weights=too_few) if min(values) < 0.02 else model

    best_form = deployed.best_form

    def noted(candidate: Candidate, *given: Any) -> Artifact:
        timed.append(candidate.parameters())
        return best_form(candidate, *given)

    monkeypatch.setattr(prune_to_latency, "fit", fit)
    monkeypatch.setattr(deployed, "best_form", noted)
    result = Prune(id="prune", round_to=2, latency_ratio=0.9, params_ratio=0.5).run(original, context)
    whole, *others = timed
    assert others and max(others) <= 0.5 * whole
    assert 0.3 * whole < result.parameters() <= 0.5 * whole
