"""The least damage that fits into a time: a knapsack whose items' times hang on each other, solved exactly.

HALP (Shen et al., NeurIPS 2022) fills a knapsack with channels whose cost is looked up at the present widths. Here the
time of a layer is the product of both its widths, so that the problem is a quadratic knapsack with one option for each
group; products are made linear with one variable for each pair of options (Adams and Sherali, 1986), and HiGHS proves
the bound.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from .latency_model import LatencyModel, Plan

GAP = 1e-3  # relative distance from the bound that is good enough
_SECONDS = 60.0  # of the solver; what it has found by then comes with its distance from the bound
_INFEASIBLE = 2  # status of `scipy.optimize.milp`; after any other without a plan nothing is known yet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """What each choice costs, in nats of the task's loss on training samples, or in any other unit that adds up."""

    groups: Mapping[str, Mapping[int, float]]  # root -> channels kept -> damage; the whole width has none
    blocks: Mapping[str, float]  # block -> damage without it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """A plan, and how far its damage may be above the least, as a share of it: at most `GAP` where that is proven."""

    plan: Plan
    gap: float


def allocate(
    model: LatencyModel, damage: Damage, time: float, size: tuple[LatencyModel, float] | None = None
) -> Solution | None:
    """The plan of least damage whose predicted time is at most `time`, proven to 0.1 % (or the best within a minute).

    Args:
        size: a model of parameters in place of time, of the same structure, and how many there may be, in parts of the
            whole network's; None: any number.

    Returns:
        None: no plan is that fast, or none that small.
    """
    budgets = [(model, time), *([] if size is None else [size])]
    problem = _Problem([each for each, _ in budgets], damage)
    limits = problem.choices()
    for row, (_, most) in zip(problem.costs(), budgets, strict=True):
        limits.append(scipy.optimize.LinearConstraint(row, -np.inf, most))

    def solved(options: Mapping[str, float]) -> Any:
        return scipy.optimize.milp(
            problem.damages(),
            integrality=problem.integrality(),
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=limits,
            options=options,
        )

    result = solved({"time_limit": _SECONDS, "mip_rel_gap": GAP})
    if result.x is None and result.status != _INFEASIBLE:
        result = solved({"time_limit": 10 * _SECONDS, "mip_rel_gap": np.inf})  # the first that fits, if any does
    return None if result.x is None else Solution(plan=problem.plan(result.x), gap=float(result.mip_gap))


def damage_of(damage: Damage, plan: Plan) -> float:
    """What a plan costs in all; groups that leave with their block cost nothing of their own."""
    return sum(damage.blocks[block] for block in plan.gone) + sum(
        damage.groups[root][width] for root, width in plan.kept.items()
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Costs:
    """What a model charges: for each option, for each pair of options that meet in a layer, and in any case."""

    options: Mapping[str, np.ndarray]
    pairs: Mapping[tuple[str, str], np.ndarray]
    always: float

    @classmethod
    def of(cls, model: LatencyModel, options: Mapping[str, Sequence[int]]) -> _Costs:
        shares = {name: np.array([_share(model, name, option) for option in each]) for name, each in options.items()}
        linear = {name: np.zeros(len(each)) for name, each in options.items()}
        pairs: dict[tuple[str, str], np.ndarray] = {}
        always = 0.0
        for weight, term in zip(model.weights, model.structure.terms, strict=True):
            for product, part in term.products.items():
                powers = Counter(product)
                raised = [shares[name] ** power for name, power in powers.items()]
                if not product:
                    always += weight * part
                elif len(powers) == 1:
                    linear[product[0]] += weight * part * raised[0]
                else:
                    first, second = powers
                    meet = weight * part * np.outer(*raised)
                    pairs[first, second] = pairs[first, second] + meet if (first, second) in pairs else meet
        return cls(options=linear, pairs={key: meet for key, meet in pairs.items() if meet.any()}, always=always)


def _share(model: LatencyModel, name: str, option: int) -> float:
    """Of a block or a group that an option leaves."""
    if name in model.structure.inner or option == 0:
        return float(option)
    return model.structure.shares(Plan(kept={name: option}), model.step)[name]


class _Problem:
    """0/1 variables: one for each option of each group and block, one for each pair of options that meet in a layer."""

    def __init__(self, models: Sequence[LatencyModel], damage: Damage) -> None:
        self._damage, self._structure = damage, models[0].structure
        structure = self._structure
        self._block = {root: block for block, roots in structure.inner.items() for root in roots}
        self._options: dict[str, list[int]] = {block: [1, 0] for block in structure.inner}
        for root in structure.channels:
            self._options[root] = [*damage.groups[root], *([0] if root in self._block else [])]
        self._costs = [_Costs.of(model, self._options) for model in models]
        pairs = {pair: None for costs in self._costs for pair in costs.pairs}
        self._pairs = tuple(pairs)
        self._start: dict[tuple[str, ...], int] = {}
        size = 0
        for name, options in self._options.items():
            self._start[name,] = size
            size += len(options)
        self._choices = size
        for first, second in pairs:
            self._start[first, second] = size
            size += len(self._options[first]) * len(self._options[second])
        self._size = size

    def damages(self) -> np.ndarray:
        found = np.zeros(self._size)
        for name, options in self._options.items():
            for index, option in enumerate(options):
                if name in self._damage.blocks:
                    found[self._start[name,] + index] = 0.0 if option else self._damage.blocks[name]
                elif option:
                    found[self._start[name,] + index] = self._damage.groups[name][option]
        return found

    def integrality(self) -> np.ndarray:
        """Pairs follow from the options they join."""
        return (np.arange(self._size) < self._choices).astype(int)

    def costs(self) -> list[scipy.sparse.csr_array]:
        """A row for each model."""
        return [scipy.sparse.csr_array(self._row(costs)[None]) for costs in self._costs]

    def _row(self, costs: _Costs) -> np.ndarray:
        row = np.zeros(self._size)
        for name, values in costs.options.items():
            row[self._start[name,] :][: len(values)] = values
        for key, values in costs.pairs.items():
            row[self._start[key] :][: values.size] = values.ravel()
        # "always" is paid once, whatever is chosen: it stands with the first group, of which one option is.
        first = next(iter(self._options))
        row[self._start[first,] :][: len(self._options[first])] += costs.always
        return row

    def choices(self) -> list[scipy.optimize.LinearConstraint]:
        """One option of each; blocks and their groups leave together; a pair stands where both its options do."""
        rows: list[dict[int, float]] = []
        values: list[float] = []
        for name, options in self._options.items():
            rows.append({self._start[name,] + index: 1.0 for index in range(len(options))})
            values.append(1.0)
        for root, block in self._block.items():
            rows.append({self._gone(root): 1.0, self._gone(block): -1.0})
            values.append(0.0)
        for first, second in self._pairs:
            start, width = self._start[first, second], len(self._options[second])
            places = np.arange(len(self._options[first]) * width).reshape(-1, width) + start
            for lines, name in ((places, first), (places.T, second)):
                for index, line in enumerate(lines):
                    rows.append({int(place): 1.0 for place in line} | {self._start[name,] + index: -1.0})
                    values.append(0.0)
        entries = [(row, column, value) for row, each in enumerate(rows) for column, value in each.items()]
        row, column, value = zip(*entries, strict=True)
        matrix = scipy.sparse.csr_array((value, (row, column)), shape=(len(rows), self._size))
        return [scipy.optimize.LinearConstraint(matrix, values, values)]

    def _gone(self, name: str) -> int:
        return self._start[name,] + self._options[name].index(0)

    def plan(self, solution: np.ndarray) -> Plan:
        chosen = {
            name: options[int(np.argmax(solution[self._start[name,] :][: len(options)]))]
            for name, options in self._options.items()
        }
        gone = tuple(block for block in self._structure.inner if chosen[block] == 0)
        kept = {root: chosen[root] for root in self._structure.channels if chosen[root]}
        return Plan(kept=kept, gone=gone)
