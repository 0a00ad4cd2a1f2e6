"""What each group of channels and each block is worth: taken alone, in the task's metric and in the deployed time."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ...benches.report.sensitivity_report import Curve, Point, Sensitivity
from ...benches.timing import environment
from ...core.errors import TaskError
from ...core.task import ArraySplit, Split, Task
from ...exporters.sessions.torch_session import TorchSession
from ...exporters.targets.targets import TARGETS
from .. import task_file, values
from ..candidate import Candidate
from ..data import any_inputs, reestimate_batch_norm, sample_indices
from ..evaluation import evaluate, task_metrics
from ..model_checks import loaded
from ..run_directory import RunDirectory, model_key
from ..schema import plain
from ..stage import Context
from . import blocks, deployed
from .channel_statistics import Statistics
from .coupling import CoupledChannels
from .damage import spread
from .dry_run import prunable, with_open_attention
from .importance import IMPORTANCES, score
from .latency_model import Plan
from .prune_to_latency import Planner

_FORMAT = 1  # of what is kept; a release that measures something else under the same names raises it
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
    set_seed(0)
    return loaded(task.model, task.load_weights, _example(task), where)


def kept_original(task: Task, directory: RunDirectory) -> Candidate:
    """The same, made by the task once: its own code may train it, and what is measured is of these weights.

    Raises:
        TaskError, DataError: see `trained`.
    """

    def make(folder: Path, _: Path) -> dict[str, Any]:
        values.save(trained(task), folder)
        return {}

    key = model_key("original", task_file.identity(task), 0) | {"use": "sensitivity"}
    done = directory.once("measurements/original", key, make)  # beside a run's own, which has its seed
    assert callable(task.model)
    found = values.load(done.path, Candidate(factory=task.model, example=_example(task), edits=(), weights={}))
    assert isinstance(found, Candidate)
    return found


def _example(task: Task) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}


def measure_sensitivity(candidate: Candidate, context: Context, samples: int, directory: RunDirectory) -> Sensitivity:
    """Measure every group at a few widths, and the network without each block.

    Args:
        samples: of the validation split.
        directory: where what is measured stays: a killed run goes on.
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

    scored = iter(_metrics(networks(), len(every), split, context, directory))
    timed = iter(_times(candidate, networks, len(every), context, directory))
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


def _metrics(
    networks: Iterable[Candidate], others: int, split: Split, context: Context, directory: RunDirectory
) -> list[float]:
    """Main metric of each; of all but the first, which is whole, with batch norms estimated anew."""
    task, metric = context.task, task_metrics(context.task)[0]
    shared = {
        "task": task_file.identity(task),
        "samples": len(split),
        "statistics": list(_STATISTICS),
        "device": context.machine.device,
        "format": _FORMAT,
    }
    found = []

    def measured(network: Candidate, whole: bool) -> float:
        module = network.module()
        if not whole:
            reestimate_batch_norm(module, context, *_STATISTICS)
        session = TorchSession(module.to(context.machine.device), task.input_specs(), task.outputs)
        return evaluate(session, split, (metric,))[metric.name]

    with context.progress.bar("metric without one part", others + 1) as advance:
        for number, network in enumerate(networks):
            name = network.digest()

            def make(*_: Path, network: Candidate = network, whole: bool = number == 0) -> dict[str, Any]:
                value = measured(network, whole)
                return {"metric": value if math.isfinite(value) else None}  # of answers that are all alike, say

            done = directory.once(f"measurements/metric-{name[:16]}", shared | {"network": name}, make)
            found.append(math.nan if done.facts["metric"] is None else done.facts["metric"])
            advance(number + 1, "")
    return found


def _times(
    whole: Candidate,
    networks: Callable[[], Iterable[Candidate]],
    others: int,
    context: Context,
    directory: RunDirectory,
) -> Sequence[float | None]:
    """Time of each after the first, which is the whole one, over the first's."""
    target, deployment = context.targets[0], context.deployment
    if TARGETS[target].unmeasurable() is not None:
        return [None] * others
    key = {
        "task": task_file.identity(context.task),
        "networks": [network.digest() for network in networks()],
        "target": target,
        "int8": deployment.int8,
        "measure": plain(deployment.measure),
        "machine": environment.describe(context.machine.threads, context.machine.seed),
        "format": _FORMAT,
    }

    def make(_: Path, work: Path) -> dict[str, Any]:
        with context.progress.bar("time without one part", others + 1) as advance:
            form = deployed.best_form(whole, context, work / "whole")
            return {"times": deployed.times(networks(), form, context, work, lambda done: advance(done, "written"))}

    found: list[float | None] = directory.once(f"measurements/times-{target}", key, make).facts["times"]
    return found


def _part(task: Task, samples: int) -> ArraySplit:
    """Some of the validation split, in memory."""
    split = task.split("validation", "sensitivity")
    inputs, labels = split.batch(sample_indices(split, samples))
    return ArraySplit(inputs, labels)
