"""The allocation is the best there is: against every plan of small networks, tried one by one."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy

from edgesmith.compressor.pruning.latency_allocation import Damage, allocate, damage_of
from edgesmith.compressor.pruning.latency_model import LatencyModel, Plan, Structure, Term

WIDTHS = {"a": [32, 16, 8], "b": [24, 16, 8], "c": [16, 8], "d": [16, 8]}
STRUCTURE = Structure(
    channels={"a": 32, "b": 24, "c": 16, "d": 16},
    inner={"block": ("c",), "other": ("d",)},
    terms=(
        Term(name="always", products={(): 1.0}, expected=0.1),
        Term(name="block", products={("block",): 1.0}, expected=0.1),
        Term(name="wide", products={("a",): 1.0}, expected=0.1),
        Term(name="own", products={("b", "b"): 1.0}, expected=0.1),
        Term(name="a to c", products={("a", "c"): 1.0}, expected=0.1),
        Term(name="c and b", products={("a", "b"): 0.5, ("b",): 0.5}, expected=0.1),
        Term(name="d", products={("b", "d"): 1.0}, expected=0.1),
        Term(name="b in the block", products={("b", "b", "block"): 1.0}, expected=0.1),
    ),
)


def problem(seed: int) -> tuple[LatencyModel, Damage]:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.05, 0.3, len(STRUCTURE.terms))
    model = LatencyModel(structure=STRUCTURE, step=8, weights=tuple((weights / weights.sum()).tolist()), error=0.0)
    groups = {
        root: dict(zip(each, np.concatenate([[0.0], rng.exponential(1.0, len(each) - 1)]).cumsum(), strict=True))
        for root, each in WIDTHS.items()
    }
    return model, Damage(groups=groups, blocks={block: float(rng.exponential(2.0)) for block in STRUCTURE.inner})


def every_plan() -> list[Plan]:
    found = []
    for number in range(len(STRUCTURE.inner) + 1):
        for gone in itertools.combinations(STRUCTURE.inner, number):
            left = [root for root in WIDTHS if not any(root in STRUCTURE.inner[block] for block in gone)]
            for widths in itertools.product(*(WIDTHS[root] for root in left)):
                found.append(Plan(kept=dict(zip(left, widths, strict=True)), gone=gone))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_nothing_better_fits_into_the_time(seed: int) -> None:
    model, damage = problem(seed)
    plans = every_plan()
    for time in (0.9, 0.6, 0.4):
        possible = [damage_of(damage, plan) for plan in plans if model.predict(plan) <= time]
        solution = allocate(model, damage, time)
        if not possible:
            assert solution is None
            continue
        assert solution is not None
        plan = solution.plan
        assert solution.gap <= 1e-3
        assert model.predict(plan) <= time + 1e-6
        assert damage_of(damage, plan) == pytest.approx(min(possible), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_better_fits_into_the_time_and_the_size(seed: int) -> None:
    model, damage = problem(seed)
    size = dataclasses.replace(problem(seed + 100)[0], step=1)
    bound = 0
    for time, most in itertools.product((0.9, 0.7, 0.5), repeat=2):
        fast = [plan for plan in every_plan() if model.predict(plan) <= time]
        possible = [damage_of(damage, plan) for plan in fast if size.predict(plan) <= most]
        solution = allocate(model, damage, time, (size, most))
        assert (solution is not None) == bool(possible)
        if solution is None:
            continue
        assert model.predict(solution.plan) <= time + 1e-6 and size.predict(solution.plan) <= most + 1e-6
        found = damage_of(damage, solution.plan)
        assert found == pytest.approx(min(possible), rel=2e-3, abs=1e-6)
        bound += found > min(damage_of(damage, plan) for plan in fast) + 1e-3
    assert bound >= 2, "the size never mattered"


def test_blocks_leave_with_their_groups() -> None:
    model, damage = problem(0)
    cheap = Damage(groups=damage.groups, blocks={"block": 0.0, "other": 0.0})
    solution = allocate(model, cheap, 0.8)
    assert solution is not None
    plan = solution.plan
    assert plan.gone
    assert not {root for block in plan.gone for root in STRUCTURE.inner[block]} & set(plan.kept)


def test_a_time_below_everything_has_no_plan() -> None:
    model, damage = problem(0)
    assert allocate(model, damage, model.weights[0] * 0.5) is None


@pytest.mark.parametrize(("time", "possible"), [(0.6, True), (0.01, False)])
def test_a_solver_that_found_nothing_in_its_time_has_not_proven_that_there_is_nothing(
    time: float, possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    milp, asked = scipy.optimize.milp, []

    def stopped(*given: Any, options: Mapping[str, float], **more: Any) -> Any:
        asked.append(options)
        if len(asked) == 1:
            return scipy.optimize.OptimizeResult(x=None, status=1, mip_gap=None)
        return milp(*given, options=options, **more)

    monkeypatch.setattr(scipy.optimize, "milp", stopped)
    model, damage = problem(0)
    solution = allocate(model, damage, time)
    assert len(asked) == 2
    assert (solution is not None) is possible
    if solution is not None:
        assert model.predict(solution.plan) <= time + 1e-6
        best = min(damage_of(damage, plan) for plan in every_plan() if model.predict(plan) <= time)
        found = damage_of(damage, solution.plan)
        assert found - best <= solution.gap * found + 1e-6
