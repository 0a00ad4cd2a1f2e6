"""Structured pruning: whole channels leave, until a ratio is met, in numbers the target's kernels like."""

import copy
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ...benches.gates.judge import Evidence
from ...core.errors import RecipeError
from ...core.limits import LimitResult
from ...core.tables import resolve
from ...core.task import Task
from ...exporters.targets.targets import TARGETS
from .. import replay
from ..candidate import Candidate
from ..data import batches, calibration_split, reestimate_batch_norm
from ..edit import BlockEdit
from ..learning.losses import task_loss
from ..stage import Context, Probe, Stage
from ..structure import measure
from . import asked, blocks, channel_statistics, plan_trials
from .allocation import ALLOCATIONS
from .channel_statistics import Statistics
from .coupling import CoupledChannels, remove
from .dry_run import prunable, with_open_attention
from .importance import IMPORTANCES, Importance, score
from .prune_to_latency import Goal, Planner
from .prune_to_ratio import Search, matches
from .unfollowed import unfollowed

Ratio = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_GOALS = ("macs_ratio", "params_ratio", "channel_ratio", "latency_ratio", "latency_ms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Stage):
    """Remove coupled channels of least importance until one goal is met, or a time and a share of the parameters both.

    A ratio is what is left / what there was: of MACs, parameters or channels, or of the deployed network's time.
    """

    name: ClassVar[str] = "prune"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    macs_ratio: Ratio | None = None
    params_ratio: Ratio | None = None
    channel_ratio: Ratio | None = None  # of the channels of all groups that can be pruned
    latency_ratio: Ratio | None = None  # of the deployed network's time on the judged target, at the first batch size
    latency_ms: Annotated[float, Field(gt=0)] | None = None  # the same as a time
    blocks: tuple[str, ...] = ("*",)  # with a latency: whole blocks (globs) that may leave
    trial_epochs: Annotated[int, Field(ge=0)] = 0  # with a latency: of plans with more or fewer blocks, to choose by
    importance: str = "magnitude-l2"
    allocation: str = "global"
    intensity: Mapping[str, Weight] = dataclasses.field(default_factory=dict)  # glob -> weight, for per-group
    round_to: Annotated[int, Field(ge=1)] | None = None  # None: what suits the judged target
    steps: Annotated[int, Field(ge=1)] = 1  # 1: one shot; more: importance is taken anew after each
    keep: tuple[str, ...] = ()  # layers (globs) that must not be pruned
    only: tuple[str, ...] = ()  # prune only these layers (globs)
    samples: Annotated[int, Field(ge=1)] = 256  # for importances and batch norms that need data
    batch_size: Annotated[int, Field(ge=2)] = 64

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        given = [name for name in _GOALS if getattr(self, name) is not None]
        if len(given) != 1 and not (len(given) == 2 and self.params_ratio and self.measures()):
            raise RecipeError(
                f"{where}: set one of {', '.join(_GOALS)}, or a latency and params_ratio; got {given or 'none'}"
            )
        if self.measures():
            self._check_latency(task, where)
        elif self.blocks != ("*",):
            raise RecipeError(f"{where}.blocks: only a latency takes blocks out; see the stage 'prune-blocks'")
        if self.trial_epochs and not (self.measures() and self.blocks):
            raise RecipeError(f"{where}.trial_epochs: only plans for a latency in which blocks may leave are tried")
        importance = resolve(self.importance, IMPORTANCES, f"{where}.importance")
        if not isinstance(importance, Importance):
            raise RecipeError(f"{where}.importance: '{self.importance}' is no `Importance`; see importance.py")
        resolve(self.allocation, ALLOCATIONS, f"{where}.allocation")
        if self.intensity and self.allocation != "per-group":
            raise RecipeError(
                f"{where}.intensity: only allocation = 'per-group' reads it, and allocation is '{self.allocation}'"
            )
        if importance.needs in ("gradients", "curvature"):
            task.split("train", f"{where}: importance '{self.importance}'")
        if task.calibration is None:
            task.split("train", f"{where}: re-estimating batch norms (no 'calibration' split is set)")

    def _check_latency(self, task: Task, where: str) -> None:
        task.split("train", f"{where}: measuring what each layer costs")
        task.split("validation", f"{where}: measuring its time")
        for key, default in (("allocation", "global"), ("steps", 1)):
            if getattr(self, key) != default:
                raise RecipeError(f"{where}.{key}: a latency is met by measurement; leave it out")

    def measures(self) -> bool:
        """See `Stage.measures`."""
        return self.latency_ratio is not None or self.latency_ms is not None

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        if self.measures():
            samples = len(task.split("train", self.name)) * self.trial_epochs * len(plan_trials.PRICES)
            trials = samples * (probe.forward + probe.backward) * self.time_left()
            searches = len(plan_trials.PRICES) if self.trial_epochs else 1
            return 60.0 * (1 + searches) + 60 * probe.export + min(90.0, 60 * self.samples * probe.forward) + trials
        return 5.0 + self.steps * (self.samples * (probe.forward + probe.backward) + 5.0)

    def time_left(self) -> float:
        """See `Stage.time_left`: layers between convolutions follow the width, which follows the root of the MACs."""
        if self.measures():
            return self.latency_ratio or 1.0
        name, ratio = self._ratio()
        return ratio if name == "channel" else math.sqrt(ratio)

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: globs and the ratio, which is only ever harder to reach after an earlier pruning."""
        value = with_open_attention(value)
        module = value.module()
        groups, every = self._groups(module, value, context, report=False)
        if self.measures():
            names = self._blocks(module, value, context)
            if not names and self.trial_epochs:
                raise RecipeError(f"{context.where}.trial_epochs: no block of this network may leave; leave it out")
            missing = TARGETS[context.targets[0]].unmeasurable()
            if missing is not None:
                raise RecipeError(
                    f"{context.where}: a latency cannot be measured on '{context.targets[0]}': {missing}; "
                    "use macs_ratio, or another target"
                )
            if self.params_ratio is not None:
                alike = {group.root: torch.ones(group.channels) for group in groups}
                Planner(value, every, alike, names, self._multiple(context), context).check_size(self.params_ratio)
            return value
        full = measure(module, value.example, groups)
        scores = {group.root: torch.ones(group.channels) for group in groups}
        name, ratio = self._ratio()
        self._search(value, groups, scores, context).check(name, getattr(full, name) * ratio, full)
        return value

    def _ratio(self) -> tuple[str, float]:
        """Name of the size the recipe limits ("macs", "params", "channel"), and to what share."""
        ratios = {"macs": self.macs_ratio, "params": self.params_ratio, "channel": self.channel_ratio}
        return next((name, ratio) for name, ratio in ratios.items() if ratio is not None)

    def _multiple(self, context: Context) -> int:
        return self.round_to or TARGETS[context.targets[0]].channel_multiple

    def held(self, kept: Mapping[str, Any], evidence: Evidence) -> tuple[list[str], list[LimitResult]]:
        """See `Stage.held`."""
        return asked.held(self.id, kept["asked"], evidence) if "asked" in kept else ([], [])

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        value = with_open_attention(value)
        before = measure(value.module(), value.example, ())
        current = self._to_latency(value, context) if self.measures() else self._to_ratio(value, context)
        module = current.module()
        if current is not value:
            reestimate_batch_norm(module, context, self.samples, self.batch_size)
        result = measure(module, current.example, ())
        context.notes.append(
            f"MACs {before.macs:,} -> {result.macs:,}, parameters {before.params:,} -> {result.params:,}"
        )
        gone = [edit.block for edit in current.edits[len(value.edits) :] if isinstance(edit, BlockEdit)]
        if gone:
            context.notes.append(f"taken out: {', '.join(gone)}")
        context.notes.append("widths " + _widths(value.module(), module))
        return Candidate.of(module, current)

    def _to_latency(self, value: Candidate, context: Context) -> Candidate:
        module = value.module()
        groups, every = self._groups(module, value, context, report=True)
        names = self._blocks(module, value, context)
        scores = self._scores(module, groups, context)
        planner = Planner(value, every, scores, names, self._multiple(context), context)
        goal = Goal(ratio=self.latency_ratio, milliseconds=self.latency_ms, params=self.params_ratio)
        edits = planner.edits(goal, self.samples, self.batch_size, self.trial_epochs)
        if not edits:
            return value
        replay.apply(module, value.example, edits)
        return Candidate.of(module, value, (*value.edits, *edits))

    def _blocks(self, module: nn.Module, value: Candidate, context: Context) -> dict[str, BlockEdit]:
        """Blocks that may leave, and what takes each out."""
        found = blocks.edits(module, value.example)
        for pattern in self.blocks:
            if pattern != "*" and not fnmatch.filter(found, pattern):
                known = ", ".join(found) or "none"
                raise RecipeError(f"{context.where}.blocks: '{pattern}' matches no block; blocks: {known}")
        return {
            name: edit
            for name, edit in found.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.blocks)
        }

    def _to_ratio(self, value: Candidate, context: Context) -> Candidate:
        name, ratio = self._ratio()
        current, full = value, None
        with context.progress.bar(f"prune {context.where}", self.steps) as advance:
            for step in range(1, self.steps + 1):
                module = current.module()
                groups, _ = self._groups(module, current, context, report=step == 1)
                full = full or measure(module, current.example, groups)
                scores = self._scores(module, groups, context)
                goal = getattr(full, name) * ratio ** (step / self.steps)
                edits = self._search(current, groups, scores, context).meet(name, goal, full)
                remove(module, current.example, edits)
                current = Candidate.of(module, current, (*current.edits, *edits))
                advance(step, f"{name}_ratio {ratio ** (step / self.steps):.2f}")
        return current

    def _search(
        self,
        value: Candidate,
        groups: list[CoupledChannels],
        scores: Mapping[str, torch.Tensor],
        context: Context,
    ) -> Search:
        multiple = self._multiple(context)
        return Search(self.allocation, self.intensity, value, groups, scores, multiple, context.where)

    def _groups(
        self, module: nn.Module, candidate: Candidate, context: Context, report: bool
    ) -> tuple[list[CoupledChannels], list[CoupledChannels]]:
        """The groups this recipe may prune, and all."""
        groups, reasons = prunable(module, candidate.example, factory=candidate.factory)
        for patterns, key in ((self.keep, "keep"), (self.only, "only"), (tuple(self.intensity), "intensity")):
            for pattern in patterns:
                if not any(matches(group, pattern) for group in groups):
                    known = ", ".join(layer for group in groups for layer in group.layers)
                    raise RecipeError(f"{context.where}.{key}: '{pattern}' matches no layer; layers: {known}")
        allowed = [
            group
            for group in groups
            if group.root not in reasons
            and not any(matches(group, pattern) for pattern in self.keep)
            and (not self.only or any(matches(group, pattern) for pattern in self.only))
        ]
        why = []
        if report or not allowed:
            others = unfollowed(module, candidate.example, groups)
            why = [f"{what}: {reason}" for what, reason in (reasons | others).items()]
        if report:
            context.notes.extend(f"not pruned: {each}" for each in why)
        if not allowed:
            alone = [group.root for group in groups if group.root not in reasons]
            why += [f"left alone by keep or only: {', '.join(alone)}"] if alone else []
            raise RecipeError(f"{context.where}: no group of channels is left to prune: {'; '.join(why)}")
        return allowed, groups

    def _scores(self, module: nn.Module, groups: list[CoupledChannels], context: Context) -> dict[str, torch.Tensor]:
        importance = resolve(self.importance, IMPORTANCES, f"{context.where}.importance")
        statistics = self._statistics(module, groups, importance, context)
        generator = torch.Generator().manual_seed(context.machine.seed)
        scores = {group.root: score(module, group, importance, statistics, generator) for group in groups}
        silent = [root for root, values in scores.items() if values is None]
        if len(silent) == len(groups):
            raise RecipeError(
                f"{context.where}.importance: '{self.importance}' can rank none of the groups: {', '.join(silent)}"
            )
        context.notes.extend(
            f"not pruned: {root}: importance '{self.importance}' says nothing about it" for root in silent
        )
        return {root: values for root, values in scores.items() if values is not None}

    def _statistics(
        self, module: nn.Module, groups: list[CoupledChannels], importance: Importance, context: Context
    ) -> Statistics:
        if importance.needs == "nothing":
            return Statistics()
        split = calibration_split(context.task) if importance.needs == "activations" else "train"
        module = copy.deepcopy(module).to(context.machine.device)
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)  # what the task froze is ranked like everything else
        size, labelled = 1 if importance.per_sample else self.batch_size, importance.needs != "activations"
        data = batches(context, split, self.samples, size, labelled=labelled)
        if importance.needs == "activations":
            return channel_statistics.activations(module, groups, data)
        loss = functools.partial(task_loss(context.task), module)
        if importance.needs == "curvature":
            generator = torch.Generator().manual_seed(context.machine.seed)
            return channel_statistics.curvatures(module, groups, data, loss, generator)
        return channel_statistics.gradients(module, groups, data, loss)


def _widths(before: nn.Module, after: nn.Module) -> str:
    """`conv1 32->16, ...` for every layer whose outputs became fewer."""
    now = {
        name: layer.weight.shape[0]
        for name, layer in after.named_modules()
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    }
    was = {
        name: layer.weight.shape[0]
        for name, layer in before.named_modules()
        if name in now and hasattr(layer, "weight")
    }
    return ", ".join(f"{name} {was[name]}->{width}" for name, width in now.items() if was[name] != width) or "unchanged"
