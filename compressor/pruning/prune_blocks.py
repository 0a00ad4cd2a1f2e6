"""Pruning in depth: whole residual blocks leave, because narrow layers do not make a network faster, fewer do."""

import dataclasses
import fnmatch
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from ...core.errors import RecipeError
from ...core.task import Task
from .. import replay
from ..candidate import Candidate
from ..data import batches, reestimate_batch_norm
from ..learning.losses import task_loss
from ..stage import Context, Probe, Stage
from ..structure import measure
from . import blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneBlocks(Stage):
    """Take out `count` blocks, one at a time: always the one without which the loss on training samples is least.

    Greedy ablation as in SLEB (Song et al., 2024), with the task's own loss as the measure.
    """

    name: ClassVar[str] = "prune-blocks"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    count: Annotated[int, Field(ge=1)] | None = None  # how many leave; None: every block that `blocks` names
    blocks: tuple[str, ...] = ("*",)  # blocks (globs) that may leave
    samples: Annotated[int, Field(ge=1)] = 512  # for the loss and for batch norms
    batch_size: Annotated[int, Field(ge=2)] = 64

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        if self.count is None and self.blocks == ("*",):
            raise RecipeError(f"{where}: set count (how many blocks leave) or blocks (which ones), or both")
        if self.count is not None:
            task.split("train", f"{where}: finding the blocks that matter least")
        if task.calibration is None:
            task.split("train", f"{where}: re-estimating batch norms (no 'calibration' split is set)")

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        return 5.0 + 20 * (self.count or 0) * self.samples * probe.forward

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: globs and the count; which blocks leave does not matter there."""
        names = self._candidates(value, context.where)
        return _without(value, names[: self.count])

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        names = self._candidates(value, context.where)
        gone = names if self.count is None or self.count == len(names) else self._least(value, names, context)
        result = _without(value, gone)
        module = result.module()
        before, after = (measure(m, value.example, ()) for m in (value.module(), module))
        reestimate_batch_norm(module, context, self.samples, self.batch_size)
        context.notes.append(f"taken out: {', '.join(gone)}")
        macs, params = f"{before.macs:,} -> {after.macs:,}", f"{before.params:,} -> {after.params:,}"
        context.notes.append(f"MACs {macs}, parameters {params}")
        return Candidate.of(module, result)

    def _candidates(self, value: Candidate, where: str) -> list[str]:
        """Names of the blocks this recipe may take out."""
        found = blocks.find(value.module(), value.example)
        for pattern in self.blocks:
            if not fnmatch.filter(found, pattern):
                known = ", ".join(found) or "none (a block must return what it gets, in shape)"
                raise RecipeError(f"{where}.blocks: '{pattern}' matches no block; blocks: {known}")
        names = [name for name in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.blocks)]
        if self.count is not None and self.count > len(names):
            raise RecipeError(f"{where}.count: {self.count}, but only {len(names)} may leave: {', '.join(names)}")
        return names

    def _least(self, value: Candidate, names: list[str], context: Context) -> list[str]:
        """`count` names in the order they leave."""
        assert self.count is not None
        gone: list[str] = []
        with context.progress.bar(f"ablate {context.where}", self.count) as advance:
            for number in range(1, self.count + 1):
                losses = {n: self._loss(_without(value, [*gone, n]), context) for n in names if n not in gone}
                gone.append(min(losses, key=lambda name: losses[name]))
                context.notes.append(f"loss without {gone[-1]}: {losses[gone[-1]]:.4f}")
                advance(number, gone[-1])
        return gone

    def _loss(self, value: Candidate, context: Context) -> float:
        module = value.module().to(context.machine.device)
        loss = task_loss(context.task)
        with torch.no_grad():
            parts = [
                (float(loss(module, inputs, labels)), len(next(iter(inputs.values()))))
                for inputs, labels in batches(context, "train", self.samples, self.batch_size, labelled=True)
            ]
        return sum(mean * count for mean, count in parts) / sum(count for _, count in parts)


def _without(value: Candidate, names: list[str]) -> Candidate:
    module = value.module()
    known = blocks.edits(module, value.example)
    edits = [known[name] for name in names]
    replay.apply(module, value.example, edits)
    return Candidate.of(module, value, (*value.edits, *edits))
