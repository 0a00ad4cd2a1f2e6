"""Torch-Pruning as a stage: its own pruner, asked for the share of channels that leaves few enough MACs."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch_pruning
from pydantic import Field

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.data import batches, reestimate_batch_norm
from edgesmith.compressor.edit import ChannelEdit
from edgesmith.compressor.learning.losses import task_loss
from edgesmith.compressor.stage import Context, Stage
from edgesmith.compressor.structure import measure
from edgesmith.core.errors import ContractError, UnreachableError

_SHARES = [share / 40 for share in range(1, 40)]  # of channels that are tried
_NEAR = 1.05  # of the MACs asked for: rounded widths seldom meet them
_IMPORTANCES: dict[str, Any] = {
    "group-norm": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchPruning(Stage):
    """Global pruning of all groups (Fang et al., DepGraph, CVPR 2023); the classifier's outputs stay."""

    name: ClassVar[str] = "torch-pruning"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    importance: Literal["group-norm", "taylor"]
    macs_ratio: Annotated[float, Field(gt=0, lt=1)]  # what is left / what there was
    round_to: Annotated[int, Field(ge=1)] = 1  # widths are multiples of it
    samples: Annotated[int, Field(ge=1)] = 256  # that gradients are taken from
    batch_size: Annotated[int, Field(ge=2)] = 64

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`: the least share of channels that leaves few enough MACs.

        All are tried in turn: a group whose rounded width would be 0 is not pruned at all, so that a larger share may
        leave more.
        """
        before = measure(value.module(), value.example, ()).macs
        most = _NEAR * self.macs_ratio * before
        trials = (self._pruned(value, share, context) for share in _SHARES)
        found = next((trial for trial in trials if measure(trial.module(), value.example, ()).macs <= most), None)
        if found is None:
            raise UnreachableError(f"{context.where}: Torch-Pruning leaves more than {most / before:.3g} of the MACs")
        result = found.module()
        reestimate_batch_norm(result, context, self.samples, self.batch_size)
        context.notes.append(f"MACs {before:,} -> {measure(result, value.example, ()).macs:,}")
        return Candidate.of(result, found)

    def _pruned(self, value: Candidate, channels: float, context: Context) -> Candidate:
        """Without this share of all channels."""
        module = value.module()
        if self.importance == "taylor":
            self._take_gradients(module, context)
        pruner = torch_pruning.pruner.BasePruner(
            module,
            tuple(value.example.values()),
            importance=_IMPORTANCES[self.importance](),
            global_pruning=True,
            pruning_ratio=channels,
            ignored_layers=[[layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]],
            round_to=self.round_to,
        )
        pruner.step()
        pruned = Candidate.of(module, value, (*value.edits, *self._edits(pruner)))
        self._check_same(module, pruned)
        return pruned

    def _take_gradients(self, module: torch.nn.Module, context: Context) -> None:
        loss = task_loss(context.task)
        module.zero_grad(set_to_none=True)
        for inputs, labels in batches(context, "train", self.samples, self.batch_size, labelled=True):
            torch.autograd.backward(loss(module, inputs, labels))

    def _edits(self, pruner: Any) -> list[ChannelEdit]:
        history = pruner.pruning_history()
        if not all(of_outputs for _, of_outputs, _ in history):
            raise ContractError("Torch-Pruning took out inputs, which no edit can say")
        return [ChannelEdit(layer=name, remove=tuple(sorted(indices))) for name, _, indices in history if indices]

    def _check_same(self, module: torch.nn.Module, pruned: Candidate) -> None:
        """Its history, replayed, has to be its network."""
        inputs = tuple(pruned.example.values())
        with torch.no_grad():
            if not torch.equal(module.eval()(*inputs), pruned.module()(*inputs)):
                raise ContractError("Torch-Pruning's history is not its network")
