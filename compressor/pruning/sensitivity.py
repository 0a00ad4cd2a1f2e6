"""What each group of channels and each block is worth: taken alone, in the task's metric and in the deployed time."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from ...benches.report.sensitivity_report import Curve, Point, Sensitivity
from ...core.errors import TaskError
from ...core.task import ArraySplit, Split, Task
from ...exporters.sessions.torch_session import TorchSession
from ...exporters.targets.targets import TARGETS
from .. import task_file
from ..candidate import Candidate, check_finite, state_of
from ..data import any_inputs, reestimate_batch_norm, sample_indices
from ..evaluation import evaluate, task_metrics
from ..stage import Context
from . import blocks, deployed
from .channel_statistics import Statistics
from .coupling import CoupledChannels
from .damage import spread
from .dry_run import prunable, with_open_attention
from .importance import IMPORTANCES, score
from .latency_model import Plan
from .prune_to_latency import Planner

_STATISTICS = (256, 64)  # samples and batch size that batch norms are estimated with
_POINTS = 3  # widths of a group


def trained(task: Task) -> Candidate:
    """The task's original with its weights.

    Raises:
        TaskError: it is an ONNX file.
        DataError: NaN weights.
    """
    where = f"task '{task.name}': model"
    if not callable(task.model):
        raise TaskError(f"{where}: an ONNX file has no channels that can be pruned; give a torch model")
    module = task_file.run_user_code(task.model, where)
    if task.load_weights is not None:
        load = task.load_weights
        task_file.run_user_code(lambda: load(module), f"{where}: load_weights")
    check_finite(state_of(module), where)
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    return Candidate(factory=task.model, example=example, edits=(), weights=state_of(module))


def measure_sensitivity(candidate: Candidate, context: Context, samples: int, work: Path) -> Sensitivity:
    """Measure every group at a few widths, and the network without each block.

    Args:
        samples: of the validation split.
        work: for the files that are timed.
    """
    task, target = context.task, TARGETS[context.targets[0]]
    candidate = with_open_attention(candidate)
    module = candidate.module()
    groups, refused = prunable(module, candidate.example, factory=candidate.factory)
    scores = _magnitudes(module, [group for group in groups if group.root not in refused], context)
    names = blocks.edits(module, candidate.example)
    planner = Planner(candidate, groups, scores, names, target.channel_multiple, context)
    parts = {
        root: [Plan(kept={root: width}) for width in spread(widths[1:], _POINTS)]
        for root, widths in planner.widths.items()
        if len(widths) > 1
    } | {block: [Plan(gone=(block,))] for block in names}
    split = _part(task, samples)
    every = list(itertools.chain.from_iterable(parts.values()))

    def networks() -> Iterator[Candidate]:
        yield from itertools.chain([candidate], map(planner.without, every))  # one in memory at a time

    scored = iter(_metrics(networks(), len(every), split, context))
    timed = iter(_times(candidate, networks(), len(every), context, work))
    whole = next(scored)

    def point(name: str, plan: Plan) -> Point:
        channels = plan.kept.get(name, 0)
        share = channels / planner.widths[name][0] if channels else 0.0
        return Point(share=share, channels=channels, metric=next(scored), latency_ratio=next(timed))

    metric = task_metrics(task)[0]
    return Sensitivity(
        task=task.name,
        target=target.name,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        whole=whole,
        samples=len(split),
        batch=context.deployment.measure.batch_sizes[0],
        threads=context.machine.threads,
        int8=context.deployment.int8,
        curves=tuple(
            Curve(
                name=name,
                kind="block" if name in names else "group",
                channels=0 if name in names else planner.widths[name][0],
                points=tuple(point(name, plan) for plan in plans),
            )
            for name, plans in parts.items()
        ),
        not_pruned=refused,
        unmeasured=target.unmeasurable() or "",
    )


def _magnitudes(module: nn.Module, groups: Sequence[CoupledChannels], context: Context) -> dict[str, torch.Tensor]:
    """Which channels of a group go first."""
    rule, generator = IMPORTANCES["magnitude-l2"], torch.Generator().manual_seed(context.machine.seed)
    scores = {group.root: score(module, group, rule, Statistics(), generator) for group in groups}
    return {root: values for root, values in scores.items() if values is not None}


def _metrics(networks: Iterable[Candidate], others: int, split: Split, context: Context) -> list[float]:
    """Main metric of each; of all but the first, which is whole, with batch norms estimated anew."""
    task, metric = context.task, task_metrics(context.task)[0]
    found = []
    with context.progress.bar("metric without one part", others + 1) as advance:
        for number, network in enumerate(networks):
            module = network.module()
            if number:
                reestimate_batch_norm(module, context, *_STATISTICS)
            session = TorchSession(module.to(context.machine.device), task.input_specs(), task.outputs)
            found.append(evaluate(session, split, (metric,))[metric.name])
            advance(number + 1, "")
    return found


def _times(
    whole: Candidate, networks: Iterable[Candidate], others: int, context: Context, work: Path
) -> Sequence[float | None]:
    """Time of each after the first, which is the whole one, over the first's."""
    if TARGETS[context.targets[0]].unmeasurable() is not None:
        return [None] * others
    with context.progress.bar("time without one part", others + 1) as advance:
        form = deployed.best_form(whole, context, work / "whole")
        return deployed.times(networks, form, context, work, lambda done: advance(done, "written"))


def _part(task: Task, samples: int) -> ArraySplit:
    """Some of the validation split, in memory."""
    split = task.split("validation", "sensitivity")
    inputs, labels = split.batch(sample_indices(split, samples))
    return ArraySplit(inputs, labels)
