"""How long each layer takes in float and in INT8, and which of them are better off in float."""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from ...core.values import Arrays
from ...exporters.int8.placement import Placement
from ...exporters.sessions.layer_kernel import LayerKernel
from ...exporters.targets.target import Target

_SECONDS = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Milliseconds of one run by node of the float graph, with what is fused to it."""

    in_float: Mapping[str, float]
    in_int8: Mapping[str, float]
    conversions: Mapping[str, float]  # tensor -> what turning it into integers and back takes in the INT8 file


def layer_times(
    target: Target, model: onnx.ModelProto, original: Path, changed: Path, feeds: Sequence[Arrays], threads: int
) -> LayerTimes:
    """Profile both files.

    Args:
        target: whose profile tells.
        model: the canonical float graph.
        original: a float file with the same layers.
        changed: the INT8 file made from `model`.
        feeds: inputs that take turns.
        threads: of each operator.
    """
    before = target.kernels(original, model, feeds, threads, _SECONDS)
    after = target.kernels(changed, model, feeds, threads, _SECONDS)
    conversions: dict[str, float] = defaultdict(float)
    for kernel in after:
        if kernel.tensor:
            conversions[kernel.tensor] += kernel.milliseconds
    owners = _owners(model)
    return LayerTimes(in_float=_by_node(before, owners), in_int8=_by_node(after, owners), conversions=dict(conversions))


def slower_in_int8(model: onnx.ModelProto, times: LayerTimes, placed: Placement) -> list[tuple[str, ...]]:
    """Sets of layers to try in float, the most promising first.

    INT8 nodes that hand integers to each other are one region: its conversions are paid once for all of them. First
    come the regions that take longer than in float, and these with the one, three or all layers that lose most by
    themselves, though a conversion more may cost what they gain. Then the one or three layers within those regions that
    lose most, for they may be all that makes the rest slow. Only a measurement of the whole tells.
    """
    chosen = set(placed.nodes)
    nodes = [node for node in model.graph.node if node.name in chosen]
    owners = _owners(model)
    fused = {owners[node.name]: node for node in model.graph.node if node.name in owners}
    activations = set(placed.activations)
    touches: dict[str, set[str]] = {}
    for node in nodes:
        ends = fused[node.name].output if node.name in fused else ()
        touches[node.name] = {*node.input, *node.output, *ends} & activations

    def time_of(names: Collection[str], times: Mapping[str, float]) -> float:
        return sum(times.get(name, 0.0) for name in names)

    whole: list[str] = []
    for region in _regions(touches):
        tensors = {name for node in region for name in touches[node]}
        paid = sum(times.conversions.get(name, 0.0) for name in tensors)
        if time_of(region, times.in_int8) + paid > time_of(region, times.in_float):
            whole += sorted(region)
    lost = {node.name: times.in_int8.get(node.name, 0.0) - times.in_float.get(node.name, 0.0) for node in nodes}
    losing = sorted((name for name, more in lost.items() if more > 0), key=lambda name: -lost[name])
    outside, inside = ([name for name in losing if (name in whole) == among] for among in (False, True))
    sets = [tuple(whole), *(tuple(whole + outside[:count]) for count in (1, 3, len(outside)) if outside)]
    sets += [tuple(inside[:count]) for count in (1, 3)]
    distinct: dict[frozenset[str], tuple[str, ...]] = {}
    for names in sets:
        distinct.setdefault(frozenset(names), names)
    return [names for names in distinct.values() if names]


def _by_node(kernels: Sequence[LayerKernel], owners: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        if kernel.node:
            found[owners.get(kernel.node, kernel.node)] += kernel.milliseconds
    return dict(found)


def _regions(touches: Mapping[str, set[str]]) -> list[set[str]]:
    """Nodes joined by the quantized tensors they touch."""
    regions: list[tuple[set[str], set[str]]] = []  # node names, tensors
    for name, own in touches.items():
        names, tensors = {name}, set(own)
        for region in [region for region in regions if region[1] & own]:
            names |= region[0]
            tensors |= region[1]
            regions.remove(region)
        regions.append((names, tensors))
    return [names for names, _ in regions]


def _owners(model: onnx.ModelProto) -> dict[str, str]:
    """A Relu or Clip -> the node before it, whose kernel it is part of wherever the runtime fuses the two."""
    makers = {name: node for node in model.graph.node for name in node.output}
    return {
        node.name: makers[node.input[0]].name
        for node in model.graph.node
        if node.op_type in ("Relu", "Clip") and node.input[0] in makers
    }
