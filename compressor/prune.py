"""Structured pruning: whole channels leave, until a ratio is met, in numbers the target's kernels like."""

import copy
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ..core.errors import RecipeError
from ..core.tables import resolve
from ..core.task import Task
from ..exporters.targets import TARGETS
from . import blocks, channel_statistics, replay
from .allocation import ALLOCATIONS, Facts, aligned
from .candidate import Candidate
from .channel_statistics import Statistics
from .coupling import CoupledChannels, find, kind_of, refuse, remove
from .data import batches, calibration_split, reestimate_batch_norm
from .edit import ChannelEdit
from .importance import IMPORTANCES, Importance, score
from .losses import task_loss
from .prune_to_latency import Goal, Planner
from .stage import Context, Probe, Stage
from .structure import Size, measure

Ratio = Annotated[float, Field(gt=0, lt=1)]
_GOALS = ("macs_ratio", "params_ratio", "channel_ratio", "latency_ratio", "latency_ms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Stage):
    """Remove coupled channels of least importance until exactly one goal is met.

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
    importance: str = "magnitude-l2"
    allocation: str = "global"
    intensity: Mapping[str, float] = dataclasses.field(default_factory=dict)  # glob -> weight, for per-group allocation
    round_to: Annotated[int, Field(ge=1)] | None = None  # None: what suits the judged target
    steps: Annotated[int, Field(ge=1)] = 1  # 1: one shot; more: importance is taken anew after each
    keep: tuple[str, ...] = ()  # layers (globs) that must not be pruned
    only: tuple[str, ...] = ()  # prune only these layers (globs)
    samples: Annotated[int, Field(ge=1)] = 256  # for importances and batch norms that need data
    batch_size: Annotated[int, Field(ge=2)] = 64

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        given = [name for name in _GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise RecipeError(f"{where}: set exactly one of {', '.join(_GOALS)}; got {given or 'none'}")
        if self.measures():
            self._check_latency(task, where)
        elif self.blocks != ("*",):
            raise RecipeError(f"{where}.blocks: only a latency takes blocks out; see the stage 'prune-blocks'")
        importance = resolve(self.importance, IMPORTANCES, f"{where}.importance")
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
            return 60.0 + 60 * probe.export + 60 * self.samples * probe.forward
        return 5.0 + self.steps * (self.samples * (probe.forward + probe.backward) + 5.0)

    def time_left(self) -> float:
        """See `Stage.time_left`: layers between convolutions follow the width, which follows the root of the MACs."""
        if self.measures():
            return self.latency_ratio or 1.0
        name, ratio = self._ratio()
        return ratio if name == "channel" else math.sqrt(ratio)

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: globs and the ratio, which is only ever harder to reach after an earlier pruning."""
        module = value.module()
        groups = self._groups(module, value, context, report=False)
        if self.measures():
            self._blocks(module, value, context)
            missing = TARGETS[context.targets[0]].unmeasurable()
            if missing is not None:
                raise RecipeError(
                    f"{context.where}: a latency cannot be measured on '{context.targets[0]}': {missing}; "
                    "use macs_ratio, or another target"
                )
            return value
        full = measure(module, value.example, groups)
        scores = {group.root: torch.ones(group.channels) for group in groups}
        name, ratio = self._ratio()
        _Search(self, value, groups, scores, self._multiple(context), context.where).check(
            name, getattr(full, name) * ratio, full
        )
        return value

    def _ratio(self) -> tuple[str, float]:
        """Name of the size the recipe limits ("macs", "params", "channel"), and to what share."""
        ratios = {"macs": self.macs_ratio, "params": self.params_ratio, "channel": self.channel_ratio}
        return next((name, ratio) for name, ratio in ratios.items() if ratio is not None)

    def _multiple(self, context: Context) -> int:
        return self.round_to or TARGETS[context.targets[0]].channel_multiple

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        before = measure(value.module(), value.example, ())
        current = self._to_latency(value, context) if self.measures() else self._to_ratio(value, context)
        module = current.module()
        reestimate_batch_norm(module, context, self.samples, self.batch_size)
        result = measure(module, current.example, ())
        context.notes.append(
            f"MACs {before.macs:,} -> {result.macs:,}, parameters {before.params:,} -> {result.params:,}"
        )
        context.notes.append("widths " + _widths(value.module(), module))
        return Candidate.of(module, current)

    def _to_latency(self, value: Candidate, context: Context) -> Candidate:
        module = value.module()
        groups = self._groups(module, value, context, report=True)
        names = self._blocks(module, value, context)
        scores = self._scores(module, groups, context)
        planner = Planner(value, find(module, value.example), scores, names, self._multiple(context), context)
        goal = Goal(ratio=self.latency_ratio, milliseconds=self.latency_ms)
        edits = planner.edits(goal, self.samples, self.batch_size)
        replay.apply(module, value.example, edits)
        return Candidate.of(module, value, (*value.edits, *edits))

    def _blocks(self, module: nn.Module, value: Candidate, context: Context) -> list[str]:
        """Blocks that may leave."""
        found = blocks.find(module, value.example)
        for pattern in self.blocks:
            if pattern != "*" and not fnmatch.filter(found, pattern):
                known = ", ".join(found) or "none"
                raise RecipeError(f"{context.where}.blocks: '{pattern}' matches no block; blocks: {known}")
        return [name for name in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.blocks)]

    def _to_ratio(self, value: Candidate, context: Context) -> Candidate:
        name, ratio = self._ratio()
        current, full = value, None
        with context.progress.bar(f"prune {context.where}", self.steps) as advance:
            for step in range(1, self.steps + 1):
                module = current.module()
                groups = self._groups(module, current, context, report=step == 1)
                full = full or measure(module, current.example, groups)
                scores = self._scores(module, groups, context)
                goal = getattr(full, name) * ratio ** (step / self.steps)
                search = _Search(self, current, groups, scores, self._multiple(context), context.where)
                edits = search.meet(name, goal, full)
                remove(module, current.example, edits)
                current = Candidate.of(module, current, (*current.edits, *edits))
                advance(step, f"{name}_ratio {ratio ** (step / self.steps):.2f}")
        return current

    def _groups(self, module: nn.Module, candidate: Candidate, context: Context, report: bool) -> list[CoupledChannels]:
        """The groups this recipe may prune."""
        groups = find(module, candidate.example)
        reasons = refuse(module, candidate.example, groups)
        for patterns, key in ((self.keep, "keep"), (self.only, "only"), (tuple(self.intensity), "intensity")):
            for pattern in patterns:
                if not any(_matches(group, pattern) for group in groups):
                    known = ", ".join(layer for group in groups for layer in group.layers)
                    raise RecipeError(f"{context.where}.{key}: '{pattern}' matches no layer; layers: {known}")
        allowed = [
            group
            for group in groups
            if group.root not in reasons
            and not any(_matches(group, pattern) for pattern in self.keep)
            and (not self.only or any(_matches(group, pattern) for pattern in self.only))
        ]
        if report:
            context.notes.extend(f"not pruned: {root}: {reason}" for root, reason in reasons.items())
        if not allowed:
            raise RecipeError(
                f"{context.where}: no group of channels is left to prune: "
                + "; ".join(f"{r}: {why}" for r, why in reasons.items())
            )
        return allowed

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
        size, labelled = 1 if importance.per_sample else self.batch_size, importance.needs != "activations"
        data = batches(context, split, self.samples, size, labelled=labelled)
        if importance.needs == "activations":
            return channel_statistics.activations(module, groups, data)
        loss = functools.partial(task_loss(context.task), module)
        if importance.needs == "curvature":
            generator = torch.Generator().manual_seed(context.machine.seed)
            return channel_statistics.curvatures(module, groups, data, loss, generator)
        return channel_statistics.gradients(module, groups, data, loss)


class _Search:
    """Finds the least intensity whose pruned network is no larger than the goal."""

    def __init__(
        self,
        stage: Prune,
        candidate: Candidate,
        groups: list[CoupledChannels],
        scores: Mapping[str, torch.Tensor],
        multiple: int,
        where: str,
    ) -> None:
        self._allocate = resolve(stage.allocation, ALLOCATIONS, f"{where}.allocation")
        self._base = candidate.module()
        weights = {
            group.root: weight
            for pattern, weight in stage.intensity.items()
            for group in groups
            if _matches(group, pattern)
        }
        self._facts = Facts(weights=weights, kinds={group.root: kind_of(self._base, group) for group in groups})
        self._candidate, self._groups, self._scores = candidate, groups, scores
        self._multiple, self._where = multiple, where
        self._seen: dict[tuple[ChannelEdit, ...], Size] = {}

    def check(self, name: str, goal: float, full: Size) -> None:
        """Refuse a goal that no intensity reaches."""
        smallest = getattr(self._size(self._edits(1.0)), name)
        if smallest > goal:
            original = getattr(full, name)
            raise RecipeError(
                f"{self._where}.{name}_ratio: {goal / original:.3g} cannot be reached without emptying a layer; "
                f"the smallest here is {smallest / original:.3g} (every layer at {self._multiple} channels); "
                "ask for more, lower round_to, or allow more layers"
            )

    def meet(self, name: str, goal: float, full: Size) -> tuple[ChannelEdit, ...]:
        """The edits that bring `name` ("macs", "params", "channel") to `goal` or just below."""
        self.check(name, goal, full)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if getattr(self._size(self._edits(middle)), name) <= goal else (middle, high)
        return self._edits(high)

    def _edits(self, intensity: float) -> tuple[ChannelEdit, ...]:
        edits = []
        for root, kept in self._allocate(self._scores, intensity, self._facts).items():
            values = self._scores[root]
            gone = len(values) - aligned(kept, len(values), self._multiple)
            if gone:
                least = values.argsort(stable=True)[:gone].sort().values
                edits.append(ChannelEdit(layer=root, remove=tuple(least.tolist())))
        return tuple(edits)

    def _size(self, edits: tuple[ChannelEdit, ...]) -> Size:
        if edits not in self._seen:
            module = copy.deepcopy(self._base)
            remove(module, self._candidate.example, edits)
            removed = {edit.layer: len(edit.remove) for edit in edits}
            channels = sum(group.channels - removed.get(group.root, 0) for group in self._groups)
            self._seen[edits] = dataclasses.replace(measure(module, self._candidate.example, ()), channel=channels)
        return self._seen[edits]


def _matches(group: CoupledChannels, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(layer, pattern) for layer in group.layers)


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
