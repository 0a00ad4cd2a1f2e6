"""Where fake quantization stands in a traced graph: the rules of `exporters.int8.placement`, on torch's operators.

What placement will quantize in the exported file is trained as INT8, and nothing else. Where the two differ (an
operator that only one of them knows), the tensor is calibrated after training instead, and the stage says so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

Node = Any  # an fx.Node, whose arguments are of types that the operator decides
_aten = torch.ops.aten
# operator that reads a weight -> axis of the weight's output channels
_WEIGHTED = {
    _aten.conv1d.default: 0,
    _aten.conv1d.padding: 0,
    _aten.conv2d.default: 0,
    _aten.conv2d.padding: 0,
    _aten.conv3d.default: 0,
    _aten.conv3d.padding: 0,
    _aten.linear.default: 0,
    _aten.matmul.default: 1,
}
_FLOAT_RESULT = (_aten.linear.default, _aten.matmul.default)  # only a reader asks for integers behind them
_JOINING = (_aten.add.Tensor, _aten.mul.Tensor, _aten.cat.default)  # every input of theirs has to be INT8
_POOLING = (
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.avg_pool3d.default,
)
# What comes out has the values of what went in, so that the same parameters do for both.
_PASSING = (
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.flatten.using_ints,
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.max_pool3d.default,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
)
_FOLDED = (_aten.batch_norm.default, _aten.dropout.default)  # gone from behind a convolution when it is exported
_CONVOLUTIONS = tuple(target for target in _WEIGHTED if "conv" in str(target))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakePlacement:
    """What is fake-quantized."""

    tensors: tuple[Node, ...]  # activations, whose readers all read the quantized values
    weights: Mapping[Node, int]  # weight -> axis of its output channels
    readers: frozenset[Node]  # the nodes that compute with quantized weights


def place(graph: fx.Graph) -> FakePlacement:
    """Place fake quantization on a traced graph (see `traced.trace`)."""
    weights: dict[Node, int] = {}
    readers: set[Node] = set()
    wanted: dict[Node, None] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not _can_be_int8(node, wanted, weights):
            continue
        if node.target in _WEIGHTED:
            weights[node.args[1]] = _WEIGHTED[node.target]
            readers.add(node)
        wanted |= dict.fromkeys([*_inputs(node), *([] if node.target in _FLOAT_RESULT else [_end(node)])])
    tensors = dict.fromkeys(_source(node) for node in wanted if not _only_an_output(node))
    return FakePlacement(
        tensors=tuple(node for node in graph.nodes if node in tensors), weights=weights, readers=frozenset(readers)
    )


def _can_be_int8(node: Node, wanted: Mapping[Node, None], weights: Mapping[Node, int]) -> bool:
    if not _is_float(node):
        return False
    if node.target in _WEIGHTED:
        axis = _WEIGHTED[node.target]
        weight = node.args[1]
        plain = _is_constant(weight) and (node.target in _CONVOLUTIONS or weight.meta["val"].ndim == 2)
        return plain and weights.get(weight, axis) == axis and not _is_constant(node.args[0])
    if node.target in _JOINING:
        inputs = _inputs(node)
        floats = all(isinstance(value, fx.Node) and _is_float(value) and not _is_constant(value) for value in inputs)
        return floats and any(value in wanted for value in inputs)
    pooling = node.target in _POOLING or (node.target == _aten.mean.dim and _is_over_positions(node))
    return (pooling or node.target in _PASSING) and node.args[0] in wanted


def _inputs(node: Node) -> list[Node]:
    """The activations a node computes on."""
    if node.target == _aten.cat.default:
        return list(node.args[0])
    return list(node.args[:2] if node.target in _JOINING else node.args[:1])


def _end(node: Node) -> Node:
    """The node that carries a result: the node itself, or the activation that is fused to it."""
    last, behind = node, _next(node)
    while node.target in _CONVOLUTIONS and behind is not None and behind.target in _FOLDED:
        last, behind = behind, _next(behind)
    fusable = node.target in _WEIGHTED or node.target == _aten.add.Tensor
    return behind if fusable and behind is not None and _clips_at_zero(behind) else last


def _next(node: Node) -> Node | None:
    """The only reader of a node's result."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _clips_at_zero(node: Node) -> bool:
    if node.target in (_aten.relu.default, _aten.relu6.default):
        return True
    bounded = node.target in (_aten.hardtanh.default, _aten.clamp.default) and len(node.args) > 1
    return bounded and isinstance(node.args[1], int | float) and node.args[1] == 0


def _source(node: Node) -> Node:
    """The tensor whose values these are."""
    while node.op == "call_function" and node.target in _PASSING and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _only_an_output(node: Node) -> bool:
    """A result of the model that nothing reads: it leaves the file in float, and is trained so."""
    return all(user.op == "output" for user in node.users)


def _is_over_positions(node: Node) -> bool:
    """A mean over all positions of `(N, C, ...)`: `canonical` makes a GlobalAveragePool of it."""
    rank = node.args[0].meta["val"].ndim
    kept = bool(node.args[2]) if len(node.args) > 2 else False
    axes = sorted(axis % rank for axis in node.args[1])
    return rank >= 3 + kept and axes == list(range(2, rank))


def _is_constant(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
