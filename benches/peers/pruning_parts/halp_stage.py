"""Pruning as HALP does (Shen et al., NeurIPS 2022): importance is bought with milliseconds out of a table of layers.

A layer's time at each output width is looked up, its input as wide as it is now; what a group costs is the sum over the
layers that write it. A knapsack takes the channels of most importance that fit. Importance is taken anew in each of a
few steps, the budget falls from step to step.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from edgesmith.compressor import replay
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning.coupling import CoupledChannels
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import UnreachableError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

_STEPS = 5
_BINS = 2000  # that a budget is counted in
_SECONDS = 0.03  # a layer at one width is timed for so long
Choice = tuple[float, float]  # importance kept, milliseconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halp(Prune):
    """`latency_ratio` is of the table's time: float layers one by one, as the paper looks them up."""

    name: ClassVar[str] = "halp"
    importance: str = "taylor"

    def _to_latency(self, value: Candidate, context: Context) -> Candidate:
        assert self.latency_ratio is not None
        current, whole = value, None
        batch = context.deployment.measure.batch_sizes[0]
        for step in range(1, _STEPS + 1):
            module = current.module()
            groups, _ = self._groups(module, current, context, report=step == 1)
            scores = self._scores(module, groups, context)
            table = _Table(module, current, batch, context.machine.threads)
            whole = whole or table.whole()
            goal = whole * self.latency_ratio ** (step / _STEPS)
            kept = _packed(groups, scores, table, self._multiple(context), goal)
            if kept is None:
                raise UnreachableError(
                    f"{context.where}: the knapsack's smallest network takes more than {goal:.3g} ms"
                )
            edits = [
                group.edit(group.least(scores[group.root], group.channels - kept[group.root]))
                for group in groups
                if group.root in kept and kept[group.root] < group.channels
            ]
            replay.apply(module, current.example, edits)
            current = Candidate.of(module, current, (*current.edits, *edits))
        return current


class _Table:
    """Milliseconds of single layers; a layer of the same shapes is timed once."""

    def __init__(self, module: nn.Module, candidate: Candidate, batch: int, threads: int) -> None:
        self._threads = threads
        self._inputs: dict[str, tuple[int, ...]] = {}
        hooks = [
            layer.register_forward_hook(functools.partial(self._seen, name))
            for name, layer in module.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear))
        ]
        with torch.no_grad():
            module.eval()(*(tensor[:1].expand(batch, *tensor.shape[1:]) for tensor in candidate.example.values()))
        for hook in hooks:
            hook.remove()
        self._layers: dict[str, Any] = {name: module.get_submodule(name) for name in self._inputs}

    def _seen(self, name: str, layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._inputs[name] = tuple(inputs[0].shape)

    def whole(self) -> float:
        """All layers as they are."""
        return sum(self.time(name, self.width(name)) for name in self._layers)

    def width(self, name: str) -> int:
        return int(self._layers[name].weight.shape[0])

    def names(self) -> list[str]:
        return list(self._layers)

    def time(self, name: str, width: int) -> float:
        """Of one layer with `width` outputs."""
        layer, shape = self._layers[name], self._inputs[name]
        if isinstance(layer, nn.Linear):
            return _timed(("linear", layer.in_features, width), shape, self._threads)
        depthwise = layer.groups > 1
        if depthwise:
            shape = (shape[0], width, *shape[2:])
        how = ("conv", shape[1], width, layer.kernel_size, layer.stride, layer.padding, width if depthwise else 1)
        return _timed(how, shape, self._threads)


@functools.cache
def _timed(how: tuple[Any, ...], shape: tuple[int, ...], threads: int) -> float:
    kind, inputs, outputs, *more = how
    if kind == "linear":
        layer: nn.Module = nn.Linear(inputs, outputs)
    else:
        kernel, stride, padding, groups = more
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    x = torch.zeros(shape)
    with tempfile.TemporaryDirectory(prefix="halp-") as folder:
        path = Path(folder) / "layer.onnx"
        axes = tuple("batch" if index == 0 else size for index, size in enumerate(shape))
        spec = TensorSpec(name="x", dtype="float32", shape=axes)
        from_torch.export(layer.eval(), {"x": x.numpy()}, (spec,), ("y",), path)
        session = OnnxRuntimeSession(path, threads)
        run = session.bind({"x": x.numpy()})
        times: list[float] = []
        until = time.perf_counter() + _SECONDS
        while len(times) < 5 or time.perf_counter() < until:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        session.close()
    return 1e3 * float(np.median(times))


def _packed(
    groups: Sequence[CoupledChannels], scores: Mapping[str, torch.Tensor], table: _Table, multiple: int, goal: float
) -> dict[str, int] | None:
    """Widths of the most importance whose layers take at most `goal` milliseconds; None: none is that fast."""
    writers = {group.root: [name for name in group.layers if name in table.names()] for group in groups}
    chosen = [group for group in groups if group.root in scores and writers[group.root]]
    free = {name for group in chosen for name in writers[group.root]}
    fixed = sum(table.time(name, table.width(name)) for name in table.names() if name not in free)
    options = []
    for group in chosen:
        ranked, each = scores[group.root].sort(descending=True).values.cumsum(0), group.multiple(multiple)
        widths = sorted({group.channels, *range(each, group.channels, each)})
        options.append(
            {
                width: (
                    float(ranked[width - 1]),
                    sum(table.time(name, table.width(name) * width // group.channels) for name in writers[group.root]),
                )
                for width in widths
            }
        )
    found = knapsack(options, goal - fixed)
    return None if found is None else {group.root: width for group, width in zip(chosen, found, strict=True)}


def knapsack(options: Sequence[Mapping[int, Choice]], budget: float) -> list[int] | None:
    """One width of each group: the most value in all whose times fit into the budget, counted in bins, upwards."""
    if budget <= 0:
        return None
    best, picks = np.zeros(_BINS + 1), []
    for each in options:
        after, pick = np.full(_BINS + 1, -np.inf), np.zeros(_BINS + 1, int)
        for width, (value, milliseconds) in each.items():
            bins = int(np.ceil(milliseconds / budget * _BINS))
            if bins > _BINS:
                continue
            with_it = np.full(_BINS + 1, -np.inf)
            with_it[bins:] = best[: _BINS + 1 - bins] + value
            pick[with_it > after] = width
            after = np.maximum(after, with_it)
        best = after
        picks.append(pick)
    if not np.isfinite(best[_BINS]):
        return None
    left, found = _BINS, []
    for each, pick in zip(reversed(options), reversed(picks), strict=True):
        width = int(pick[left])
        found.append(width)
        left -= int(np.ceil(each[width][1] / budget * _BINS))
    return found[::-1]
