"""What a run will take: a few timed passes of the networks it has, as far as they are known before it."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..core.task import Task
from ..exporters.sessions.torch_session import TorchSession, forward, to_tensors
from .candidate import Candidate
from .data import any_inputs
from .learning.precision import chosen
from .learning.training import Training, channels_last
from .model_graph import opened
from .recipe import Recipe
from .stage import Graph, Machine, Probe

_BATCH = 32
_REPEATS = 2  # after one that is not timed; the faster counts, the other had company
Values = Mapping[str, Candidate | Graph]


def estimates(recipe: Recipe, task: Task, machine: Machine, values: Values) -> tuple[Probe, list[float]]:
    """What a pass of the original costs, and the seconds of every stage.

    Every stage is asked with the costs of the network it works on, and of its teachers.

    Args:
        values: what was rehearsed: "original" and, by stage, what comes out of it; untrained, channels not yet removed.
    """
    if "original" not in values:
        probe = Probe(forward=1e-3, backward=0.0, export=0.0)
        return probe, [stage.estimate(task, probe) for stage in recipe.stages]
    trains = any(isinstance(stage, Training) for stage in recipe.stages)
    value, left = values["original"], 1.0  # `left`: of the time of a pass, after the channels that were removed
    original = probe = measured(value, task, machine, trains)
    passes = {"original": probe.forward}

    def named(name: str) -> float:
        if name not in passes:
            passes[name] = _of_model(name, task, machine)
        return passes[name]

    seconds = []
    for stage in recipe.stages:
        after = values.get(stage.id, value)
        known = after is value or isinstance(after, Graph)  # a file's pass counts as that of the network before it
        made = probe if known else measured(after, task, machine, trains)
        if isinstance(stage, Training) and after is not value:  # a student of its own, which is what it trains
            probe, left = made, 1.0
        costs = dataclasses.replace(probe, forward=left * probe.forward, backward=left * probe.backward, named=named)
        pace = pace_of(stage, after, task, machine) if isinstance(stage, Training) else 1.0
        seconds.append(stage.estimate(task, costs) * pace)
        value, probe, left = after, made, left * stage.time_left()
        passes[stage.id] = left * probe.forward
    return original, seconds


def measured(value: Candidate | Graph, task: Task, machine: Machine, trains: bool) -> Probe:
    """Costs of one network, in batches of `_BATCH`; the backward pass only where something trains."""
    assert isinstance(value, Candidate)  # only such are rehearsed
    inputs = any_inputs(task, _BATCH)
    module = value.module().to(machine.device)
    session = TorchSession(module, task.input_specs(), task.outputs)
    once = _fastest(lambda: session.run(inputs))
    both = once
    if trains:
        tensors = to_tensors(inputs, machine.device)
        both = max(once, _fastest(lambda: _train_pass(module.train(), tensors, task)))
    layers = sum(1 for _ in module.modules())
    return Probe(forward=once / _BATCH, backward=(both - once) / _BATCH, export=2.0 + 0.05 * layers)


def pace_of(stage: Training, value: Candidate | Graph, task: Task, machine: Machine) -> float:
    """Time of a training pass in the stage's precision and memory layout, as a share of one in float32."""
    precision = chosen(stage.mixed_precision, machine.device)
    if stage.minutes is not None or (precision == "no" and not stage.channels_last):
        return 1.0
    assert isinstance(value, Candidate)  # only such are trained
    tensors = to_tensors(any_inputs(task, _BATCH), machine.device)
    plain = value.module().to(machine.device).train()
    changed = value.module().to(machine.device).train()
    if stage.channels_last:
        changed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks this one
        tensors = {name: channels_last(tensor) for name, tensor in tensors.items()}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    base = _fastest(lambda: _train_pass(plain, tensors, task))
    with torch.autocast(machine.device, dtype=dtype, enabled=dtype is not None):
        return _fastest(lambda: _train_pass(changed, tensors, task)) / base


def _train_pass(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], task: Task) -> None:
    module.zero_grad()
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    forward(module, copies, task.outputs)[task.outputs[0]].float().sum().backward()  # type: ignore[no-untyped-call]  # torch's


def _of_model(name: str, task: Task, machine: Machine) -> float:
    """Seconds per sample of a forward pass of one of the task's models."""
    model = task.models[name]
    inputs: dict[str, np.ndarray] = any_inputs(task, _BATCH)
    if not callable(model):
        with opened(model, task, name, machine.device) as session:
            return _fastest(lambda: session.run(inputs)) / _BATCH
    asked = TorchSession(model().to(machine.device), task.input_specs(), task.outputs)
    return _fastest(lambda: asked.run(inputs)) / _BATCH


def _fastest(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
