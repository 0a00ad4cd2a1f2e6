"""Pruning to a time: measure, fit, solve, then measure what came out and correct.

As HALP does (Shen et al., NeurIPS 2022), importance is bought with milliseconds. Here both are measured on this model:
the time of whole deployed networks, and the loss without channels.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UnreachableError
from ...core.values import Artifact
from .. import replay
from ..candidate import Candidate
from ..edit import BlockEdit, Edit
from ..stage import Context
from . import asked, deployed, plan_trials
from .coupling import CoupledChannels
from .damage import measure_damage, seconds_of_sample, spread
from .latency_allocation import GAP, Damage, Solution, allocate, damage_of
from .latency_model import LatencyModel, Plan, Structure, fit, structure_of

_WIDTHS = 8  # that a group may choose from
_ROUNDS = 8  # networks measured until one is close
_APART = 1.005  # between an aim too high and one too low no other plan is looked for
_CLOSE = 0.03  # relative distance below the goal that ends the rounds
_AIM = 0.99  # a little below the goal, so that the noise of a measurement does not miss it
_MOST_SAMPLES = 96  # networks measured for a fit
_RANDOM = 16  # of them at least
_REMEDY = "ask for more, lower round_to, or let more layers and blocks go"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What is asked: a share of the network's time, or milliseconds; beside it a share of the parameters."""

    ratio: float | None
    milliseconds: float | None
    params: float | None = None  # at most; None: any number

    @property
    def value(self) -> float:
        """Whichever of them is given."""
        given = self.milliseconds if self.ratio is None else self.ratio
        assert given is not None
        return given

    def share(self, whole: float) -> float:
        """In parts of the whole network's milliseconds."""
        return self.value if self.ratio is not None else self.value / whole

    def text(self, share: float, whole: float) -> str:
        """A share as the recipe asks for it."""
        return f"{share:.3g}" if self.ratio is not None else f"{share * whole:.3g} ms"

    @property
    def key(self) -> str:
        return "latency_ratio" if self.ratio is not None else "latency_ms"


class Planner:
    """Everything that is known of one network: its structure, its damages, its time at other widths.

    Args:
        candidate: the network before pruning.
        groups: all of them.
        scores: of those that may be pruned: root -> (channels,).
        blocks: that may leave, and what takes each out.
        multiple: widths are multiples of it.
    """

    def __init__(
        self,
        candidate: Candidate,
        groups: Sequence[CoupledChannels],
        scores: Mapping[str, torch.Tensor],
        blocks: Mapping[str, BlockEdit],
        multiple: int,
        context: Context,
    ) -> None:
        self._candidate, self._scores, self._blocks, self._context = candidate, scores, blocks, context
        self._groups, self._parameters = [group for group in groups if group.root in scores], candidate.parameters()
        self.structure = structure_of(candidate.module(), candidate.example, groups, set(scores), list(blocks))
        self.widths = {group.root: widths(group.channels, group.multiple(multiple)) for group in self._groups}

    def edits(self, goal: Goal, samples: int, batch_size: int, trial_epochs: int = 0) -> tuple[Edit, ...]:
        """The edits of least damage that bring the deployed network to the goal or just below; none if it is there.

        Args:
            goal: what is asked.
            samples: to measure damages on, at most.
            batch_size: of them.
            trial_epochs: that plans with blocks at several prices are trained for, the best is kept; 0: the one of
                least damage.

        Raises:
            UnreachableError: even the smallest network is slower, or larger.
        """
        context, structure = self._context, self.structure
        whole = deployed.best_form(self._candidate, context, context.work)
        milliseconds, _ = deployed.compare(whole, whole, context)
        asked.keep(goal.key, goal.value, whole, context)
        if goal.share(milliseconds) >= 1 and goal.params is None:
            now, wanted = (goal.text(share, milliseconds) for share in (1.0, goal.share(milliseconds)))
            context.notes.append(f"nothing is pruned: it takes {now} as deployed, and {wanted} is asked")
            return ()
        facts = self._measured(whole, batch_size)
        damage = measure_damage(
            self._candidate,
            self._groups,
            self.widths,
            [self._blocks[block] for block in structure.inner],
            self._scores,
            context,
            samples,
            batch_size,
            facts["seconds"],
        )
        plans = [Plan(kept=each["kept"], gone=tuple(each["gone"])) for each in facts["plans"]]
        model = fit(structure, plans, facts["times"])
        context.notes.append(
            f"latency model: {len(plans)} networks measured, median error {model.error:.1%} on those left out of a "
            f"fit, widths count in steps of {model.step}"
        )
        size = None
        if goal.params is not None:
            self.check_size(goal.params)
            size = fit(structure, plans, facts["params"])
        rounds = _Rounds(self, context, goal, whole, milliseconds, size)
        prices = plan_trials.PRICES if trial_epochs and structure.inner else (1.0,)
        found = [rounds.confirmed(model, plan_trials.priced(damage, price)) for price in prices]
        different = [plan for index, plan in enumerate(found) if plan not in found[:index]]
        if len(different) > 1:
            plan = plan_trials.best(different, self.without, trial_epochs, context)
        else:
            plan = different[0]
            if trial_epochs:
                context.notes.append("no plan is tried: blocks at any price give the same one")
        context.notes.append(rounds.note(plan, damage))
        return self._edits(plan)

    def _measured(self, form: Artifact, batch_size: int) -> dict[str, Any]:
        """Plans that were measured, their times and parameters in parts of the whole network's, what a sample takes.

        Kept for the machine, so that the next goal is planned on the same. Which of its INT8 forms was the fastest is
        no part of what they are kept under: forms as fast as each other take turns.
        """
        plans = samples(self.structure, self.widths)
        key = {
            "candidate": self._candidate.digest(),
            "plans": [dataclasses.asdict(plan) for plan in plans],
            "precision": form.precision,
            "batch_size": batch_size,
            "facts": ("times", "params", "seconds"),  # what was kept before there were params is not found
        }

        def make(work: Path) -> dict[str, Any]:
            context, params = self._context, []

            def counted(plan: Plan) -> Candidate:
                candidate = self.without(plan)
                params.append(self.left(candidate))
                return candidate

            with context.progress.bar(f"latency of other widths, {context.where}", len(plans) + 1) as advance:
                candidates = itertools.chain([self._candidate], map(counted, plans))  # one in memory at a time
                times = deployed.times(candidates, form, context, work, lambda done: advance(done, "exported"))
            seconds = seconds_of_sample(self._candidate.module(), context, batch_size)
            listed = [dataclasses.asdict(plan) for plan in plans]
            return {"plans": listed, "times": times, "params": params, "seconds": seconds}

        return self._context.deployment.once(key, make)

    def smallest(self) -> Plan:
        """The fastest there is, as the model sees it: its weights are never negative."""
        inner = {root for roots in self.structure.inner.values() for root in roots}
        kept = {root: each[-1] for root, each in self.widths.items() if root not in inner}
        return Plan(kept=kept, gone=tuple(self.structure.inner))

    def left(self, candidate: Candidate) -> float:
        """Its parameters in parts of the whole network's."""
        return candidate.parameters() / self._parameters

    def check_size(self, most: float) -> None:
        """Refuse a share of the parameters below that of the smallest network.

        Raises:
            UnreachableError: names that.
        """
        fewest = self.left(self.without(self.smallest()))
        if fewest > most:
            raise UnreachableError(
                f"{self._context.where}.params_ratio: {most} cannot be reached; the fewest that can be left are "
                f"{fewest:.3g}; {_REMEDY}"
            )

    def without(self, plan: Plan) -> Candidate:
        """The network that a plan leaves, with the least important channels of each group gone."""
        module = self._candidate.module()
        edits = self._edits(plan)
        replay.apply(module, self._candidate.example, edits)
        return Candidate.of(module, self._candidate, (*self._candidate.edits, *edits))

    def _edits(self, plan: Plan) -> tuple[Edit, ...]:
        edits: list[Edit] = []
        for group in self._groups:
            away = group.channels - plan.kept.get(group.root, group.channels)
            if away:
                edits.append(group.edit(group.least(self._scores[group.root], away)))
        return (*edits, *(self._blocks[block] for block in plan.gone))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tried:
    """A plan, its time as deployed over the whole network's, and how far its damage may be from the least."""

    plan: Plan
    time: float
    gap: float


class _Rounds:
    """Solve, write the network as it will be deployed, time it, and move the model's goal by what was wrong.

    Args:
        whole: the file of the network before pruning, which takes `milliseconds`.
        size: a model of its parameters; None: there may be any number.
    """

    def __init__(
        self,
        planner: Planner,
        context: Context,
        goal: Goal,
        whole: Artifact,
        milliseconds: float,
        size: LatencyModel | None,
    ) -> None:
        self._planner, self._context, self._goal, self._size = planner, context, goal, size
        self._whole, self._milliseconds, self._asked = whole, milliseconds, goal.share(milliseconds)
        self._most = math.inf if goal.params is None else goal.params  # parameters, in parts of the whole network's
        self._bias = 1.0  # what the model says over what was measured, by the network tried last
        self._smallest = planner.smallest()
        self._tried: list[_Tried] = []

    def confirmed(self, model: LatencyModel, damage: Damage) -> Plan:
        """The plan of least damage among those, all of them small enough, that were measured to be fast enough."""
        self._search(model, damage)
        if all(each.time > self._asked for each in self._tried):
            self._timed(Solution(plan=self._smallest, gap=0.0), model)
        kept = [each for each in self._tried if each.time <= self._asked]
        if not kept:
            raise UnreachableError(
                f"{self._context.where}.{self._goal.key}: {self._text(self._asked)} cannot be reached; the fastest "
                f"that can be had takes {self._text(min(each.time for each in self._tried))}; {_REMEDY}"
            )
        return min(kept, key=lambda each: damage_of(damage, each.plan)).plan

    def note(self, plan: Plan, damage: Damage) -> str:
        """What a confirmed plan takes and costs, for the ledger."""
        tried = next(each for each in self._tried if each.plan == plan)
        took, asked = self._text(tried.time), self._text(self._asked)
        unsure = f", and up to {tried.gap:.1%} of it may be needless: the solver's time ran out"
        return (
            f"time {took} of {self._milliseconds:.3g} ms as deployed, {asked} asked{self._sizes(plan)}; "
            f"loss before training again +{damage_of(damage, plan):.3g} at most" + (unsure if tried.gap > GAP else "")
        )

    def _search(self, model: LatencyModel, damage: Damage) -> None:
        """Until one is close, or none lies between the slowest that is fast enough and the fastest that is not.

        Parameters are counted, so that what has too many is never timed; the next plan has less room. The smallest
        network has few enough (`Planner.check_size`).
        """
        asked, aim, room = self._asked, self._asked * _AIM * self._bias, self._most
        fast, slow = 0.0, math.inf  # aims whose networks were faster, and slower, than asked
        seen: list[Plan] = []
        while len(seen) < _ROUNDS and slow / max(fast, 1e-9) > _APART:
            size = None if self._size is None else (self._size, room)
            solution = allocate(model, damage, aim, size) or Solution(plan=self._smallest, gap=0.0)
            if self._size is not None and (counted := self._counted(solution.plan)) > self._most:
                room = _AIM * self._size.predict(solution.plan) * self._most / counted
                continue
            again = solution.plan in seen
            seen += [] if again else [solution.plan]
            time, planned = self._timed(solution, model), model.predict(solution.plan)
            self._bias = planned / time
            if asked * (1 - _CLOSE) <= time <= asked or (solution.plan == self._smallest and time > asked):
                return
            if again and slow == math.inf:
                return  # a higher aim brings nothing else
            fast, slow = (fast, min(slow, planned)) if time > asked else (max(fast, aim), slow)
            aim = math.sqrt(fast * slow) if fast > 0 and slow < math.inf else planned * asked * _AIM / time

    def _counted(self, plan: Plan) -> float:
        """Parameters in parts of the whole network's."""
        return self._planner.left(self._planner.without(plan))

    def _timed(self, solution: Solution, model: LatencyModel) -> float:
        """Over the whole network's time; each plan is measured once."""
        plan, context = solution.plan, self._context
        known = next((each.time for each in self._tried if each.plan == plan), None)
        if known is not None:
            return known
        file = deployed.best_form(self._planner.without(plan), context, context.work)
        _, time = deployed.compare(self._whole, file, context)
        self._tried.append(_Tried(plan=plan, time=time, gap=solution.gap))
        planned, measured, wanted = map(self._text, (model.predict(plan), time, self._asked))
        context.progress.say(f"  planned {planned}, measured {measured}; asked {wanted}{self._sizes(plan)}")
        return time

    def _sizes(self, plan: Plan) -> str:
        """Its parameters beside what is asked of them; nothing where nothing is."""
        return "" if self._size is None else f"; {self._counted(plan):.3g} of the parameters, {self._most:.3g} asked"

    def _text(self, share: float) -> str:
        return self._goal.text(share, self._milliseconds)


def widths(channels: int, multiple: int) -> list[int]:
    """What a group may be left with, falling, all of them first: multiples, spread evenly where there are many.

    >>> widths(32, 8), widths(10, 8), widths(6, 8)
    ([32, 24, 16, 8], [10, 8], [6])
    """
    smaller = list(range(multiple, channels, multiple))
    if len(smaller) >= _WIDTHS:
        places = np.unique(np.linspace(0, len(smaller) - 1, _WIDTHS - 1).round().astype(int))
        smaller = [smaller[place] for place in places]
    return [channels, *reversed(smaller)]


def samples(structure: Structure, choices: Mapping[str, Sequence[int]], seed: int = 0) -> list[Plan]:
    """Which networks to measure: each block out, each group alone at its smallest and a middle width, all at their
    smallest, and mixtures drawn by chance, without which the products of two widths could not be told apart.

    Of a network with more parts than can be measured apart, every second or third is taken alone, mixtures are half.
    """
    rng = np.random.default_rng(seed)
    free = [root for root, each in choices.items() if len(each) > 1]
    mixed = min(max(_RANDOM, len(free) + len(structure.inner)), _MOST_SAMPLES // 2)
    alone = [Plan(gone=(block,)) for block in structure.inner]
    alone += [Plan(kept={root: choices[root][-1]}) for root in free]
    alone += [Plan(kept={root: choices[root][len(choices[root]) // 2]}) for root in free if len(choices[root]) > 2]
    plans = [*spread(alone, _MOST_SAMPLES - mixed - 1), Plan(kept={root: choices[root][-1] for root in free})]
    plans += [drawn(structure, choices, rng) for _ in range(mixed)]
    return [plan for index, plan in enumerate(plans) if plan not in plans[:index]]


def drawn(structure: Structure, choices: Mapping[str, Sequence[int]], rng: np.random.Generator) -> Plan:
    """Any plan: every width as likely as another, and a share of the blocks that is itself drawn."""
    share = rng.random()
    gone = tuple(block for block in structure.inner if rng.random() < share)
    left = {root for block in gone for root in structure.inner[block]}
    return Plan(kept={root: int(rng.choice(each)) for root, each in choices.items() if root not in left}, gone=gone)
