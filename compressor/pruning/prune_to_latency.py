"""Pruning to a time: measure, fit, solve, then measure what came out and correct.

As HALP does (Shen et al., NeurIPS 2022), importance is bought with milliseconds. Here both are measured on this model:
the time of whole deployed networks, and the loss without channels.
"""

import dataclasses
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
from . import deployed
from .coupling import CoupledChannels
from .damage import measure_damage
from .latency_allocation import Damage, allocate, damage_of
from .latency_model import LatencyModel, Plan, Structure, fit, structure_of

_WIDTHS = 8  # that a group may choose from
_ROUNDS = 8  # networks measured until one is close
_APART = 1.005  # between an aim too high and one too low no other plan is looked for
_CLOSE = 0.03  # relative distance below the goal that ends the rounds
_AIM = 0.99  # a little below the goal, so that the noise of a measurement does not miss it
_MOST_SAMPLES = 96  # networks measured for a fit
_RANDOM = 16  # of them at least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What is asked: a share of the network's time, or milliseconds."""

    ratio: float | None
    milliseconds: float | None

    def share(self, whole: float) -> float:
        """In parts of the whole network's milliseconds."""
        if self.ratio is not None:
            return self.ratio
        assert self.milliseconds is not None
        return self.milliseconds / whole

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
        blocks: that may leave.
        multiple: widths are multiples of it.
    """

    def __init__(
        self,
        candidate: Candidate,
        groups: Sequence[CoupledChannels],
        scores: Mapping[str, torch.Tensor],
        blocks: Sequence[str],
        multiple: int,
        context: Context,
    ) -> None:
        self._candidate, self._scores, self._context = candidate, scores, context
        self._groups = [group for group in groups if group.root in scores]
        self.structure = structure_of(candidate.module(), candidate.example, groups, set(scores), blocks)
        self.widths = {group.root: widths(group.channels, group.multiple(multiple)) for group in self._groups}

    def edits(self, goal: Goal, samples: int, batch_size: int) -> tuple[Edit, ...]:
        """The edits of least damage that bring the deployed network to the goal or just below.

        Raises:
            UnreachableError: even the smallest network is slower.
        """
        context, structure = self._context, self.structure
        damage = measure_damage(
            self._candidate,
            self._groups,
            self.widths,
            tuple(structure.inner),
            self._scores,
            context,
            samples,
            batch_size,
        )
        whole = deployed.best_form(self._candidate, context, context.work / "whole")
        facts = self._measured(whole)
        plans = [Plan(kept=each["kept"], gone=tuple(each["gone"])) for each in facts["plans"]]
        model = fit(structure, plans, facts["times"])
        context.notes.append(
            f"latency model: {len(plans)} networks measured, median error {model.error:.1%} on those left out of a "
            f"fit, widths count in steps of {model.step}"
        )
        return self._edits(self._confirmed(goal, model, damage, whole))

    def _measured(self, form: Artifact) -> dict[str, Any]:
        """Plans that were measured, their times in parts of the whole network's; kept for the machine."""
        plans = samples(self.structure, self.widths)
        key = {
            "candidate": self._candidate.digest(),
            "plans": [dataclasses.asdict(plan) for plan in plans],
            "dialect": form.dialect,
        }

        def make(work: Path) -> dict[str, Any]:
            context = self._context
            with context.progress.bar(f"latency of other widths, {context.where}", len(plans) + 1) as advance:
                candidates = [self._candidate, *(self.without(plan) for plan in plans)]
                times = deployed.times(candidates, form, context, work, lambda done: advance(done, "exported"))
            return {"plans": [dataclasses.asdict(plan) for plan in plans], "times": times}

        return self._context.deployment.once(key, make)

    def _confirmed(self, goal: Goal, model: LatencyModel, damage: Damage, whole_file: Artifact) -> Plan:
        """Solve, write the network as it will be deployed, time it, and move the model's goal by what was wrong."""
        context = self._context
        whole, _ = deployed.compare(whole_file, whole_file, context)
        asked = goal.share(whole)
        aim = asked * _AIM
        tried: list[tuple[Plan, float]] = []
        fast, slow = 0.0, math.inf  # aims whose networks were faster, and slower, than asked
        while len(tried) < _ROUNDS and slow / max(fast, 1e-9) > _APART:
            plan = allocate(model, damage, aim) or self._smallest()
            time = next((time for before, time in tried if before == plan), None)
            if time is None:
                file = deployed.best_form(self.without(plan), context, context.work / f"{len(tried):02d}")
                _, time = deployed.compare(whole_file, file, context)
                tried.append((plan, time))
                planned, measured, wanted = (goal.text(each, whole) for each in (model.predict(plan), time, asked))
                context.progress.say(f"  planned {planned}, measured {measured}; asked {wanted}")
            if asked * (1 - _CLOSE) <= time <= asked or (plan == self._smallest() and time > asked):
                break
            fast, slow = (fast, min(slow, aim)) if time > asked else (max(fast, aim), slow)
            aim = math.sqrt(fast * slow) if fast > 0 and slow < math.inf else aim * asked * _AIM / time
        kept = [(plan, time) for plan, time in tried if time <= asked]
        if not kept:
            raise UnreachableError(
                f"{context.where}.{goal.key}: {goal.text(asked, whole)} cannot be reached; the fastest that can be had "
                f"takes {goal.text(min(time for _, time in tried), whole)}; ask for more, lower round_to, or let more "
                "layers and blocks go"
            )
        plan, time = min(kept, key=lambda each: damage_of(damage, each[0]))
        context.notes.append(
            f"time {goal.text(time, whole)} of {whole:.3g} ms as deployed, {goal.text(asked, whole)} asked; "
            f"loss before training again +{damage_of(damage, plan):.3g} at most"
        )
        return plan

    def _smallest(self) -> Plan:
        """The fastest there is, as the model sees it: its weights are never negative."""
        inner = {root for roots in self.structure.inner.values() for root in roots}
        kept = {root: each[-1] for root, each in self.widths.items() if root not in inner}
        return Plan(kept=kept, gone=tuple(self.structure.inner))

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
        return (*edits, *(BlockEdit(block=block) for block in plan.gone))


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
    """Which networks to measure: each group alone at its smallest and a middle width, each block out, all at their
    smallest, and mixtures drawn by chance, without which the products of two widths could not be told apart.
    """
    rng = np.random.default_rng(seed)
    free = [root for root, each in choices.items() if len(each) > 1]
    plans = [Plan(kept={root: choices[root][-1]}) for root in free]
    plans += [Plan(gone=(block,)) for block in structure.inner]
    plans += [Plan(kept={root: choices[root][-1] for root in free})]
    plans += [Plan(kept={root: choices[root][len(choices[root]) // 2]}) for root in free if len(choices[root]) > 2]
    mixed = max(_RANDOM, len(free) + len(structure.inner))
    plans = [*plans[: _MOST_SAMPLES - mixed], *(drawn(structure, choices, rng) for _ in range(mixed))]
    return [plan for index, plan in enumerate(plans) if plan not in plans[:index]]


def drawn(structure: Structure, choices: Mapping[str, Sequence[int]], rng: np.random.Generator) -> Plan:
    """Any plan: every width as likely as another, and a share of the blocks that is itself drawn."""
    share = rng.random()
    gone = tuple(block for block in structure.inner if rng.random() < share)
    left = {root for block in gone for root in structure.inner[block]}
    return Plan(kept={root: int(rng.choice(each)) for root, each in choices.items() if root not in left}, gone=gone)
