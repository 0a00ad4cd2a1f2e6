"""Which pruning a generated recipe may ask for: tried on the trained model, because architectures differ."""

import dataclasses
import fnmatch
import re
import tempfile
from pathlib import Path

import torch
from torch import nn

from ...core.task import Task
from ..candidate import Candidate, state_of
from ..data import any_inputs
from ..progress import Progress
from ..pruning import coupling
from ..pruning.coupling import Layout
from ..pruning.dry_run import prunable
from ..pruning.prune import Prune
from ..recipe import Recipe
from ..stage import Context, Graph, Machine

_TRIAL_SAMPLES = 8  # enough to see that importances can be taken, too few to mean anything


def rehearse(recipe: Recipe, task: Task, module: nn.Module) -> None:
    """Run the recipe's prune stage on a few samples; what it raises rules the stage out for this architecture."""
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    assert callable(task.model)
    value = Candidate(factory=task.model, example=example, edits=(), weights=state_of(module))
    for index, stage in enumerate(recipe.stages):
        if not isinstance(stage, Prune):
            continue
        with tempfile.TemporaryDirectory() as work:
            trial = dataclasses.replace(stage, samples=_TRIAL_SAMPLES, batch_size=_TRIAL_SAMPLES // 2)
            trial.run(value, _context(recipe, task, Path(work), f"stages[{index}] '{stage.id}'"))


def feed_forward_layers(task: Task, module: nn.Module) -> tuple[str, ...]:
    """Globs of the layers whose channels only one other layer reads: a transformer's feed-forward parts.

    Its heads and its residual stream run through the whole network; they are not pruned by a recipe that nobody has
    looked at. Empty where there are no such layers.
    """
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    layers = dict(module.named_modules())
    groups = coupling.find(module, example)
    pairs = [
        group
        for group in groups
        if len(group.members) == 2 and all(isinstance(layers[member.layer], nn.Linear) for member in group.members)
    ]
    tried, refused = prunable(module, example, pairs)
    roots = [group.root for group in tried if group.root not in refused and group.layout == Layout()]
    globs = tuple(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", root) for root in roots))
    others = [group.root for group in groups if group.root not in roots]
    exact = not any(fnmatch.fnmatchcase(other, glob) for other in others for glob in globs)
    return globs if exact else tuple(roots)


def _context(recipe: Recipe, task: Task, work: Path, where: str) -> Context:
    def named(name: str) -> Candidate | Graph:
        raise AssertionError(f"pruning asks for no other model, and not for '{name}'")

    return Context(
        task=task,
        machine=Machine(),
        targets=recipe.targets,
        work=work,
        progress=Progress(),
        named=named,
        where=where,
    )
