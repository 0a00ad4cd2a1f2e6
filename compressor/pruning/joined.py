"""Where channels go where tensors are joined, split, flattened or spread: Torch-Pruning guesses, autograd's nodes know.

An axis is that of the channels if it is as long as the layers before it have channels. Along any other axis what joins
or splits is taken for element-wise, as the library takes whatever it does not know.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch_pruning
from torch_pruning._helpers import _HybridIndex

_TYPES = torch_pruning.ops.OPTYPE


def follow(graph: Any) -> int:
    """Tell a graph where channels go, in place; returns the most that anything in it has."""
    written = _written(graph)
    for node in list(graph.module2node.values()):
        if node.type == _TYPES.CONCAT and _joins_channels(node, written):
            for source, start, size in _joined(node):
                _link(source, node, node, _Moved((range(size), start)), _Moved((range(start, start + size), -start)))
        elif node.type == _TYPES.SPLIT and _splits_channels(node, written):
            for target, start, size in _parts(node):
                _link(node, target, node, _Moved((range(start, start + size), -start)), _Moved((range(size), start)))
        elif _halves(node, written):
            half = _shape(node.grad_fn)[_axis(node.grad_fn)]
            first, second = range(half), range(half, 2 * half)
            _link(node.inputs[0], node, node, _Moved((first, 0), (second, -half)), _Moved((first, 0), (first, half)))
        elif node.type == _TYPES.RESHAPE and (flat := _flattened(node, written)):
            _link(node.inputs[0], node, node, *flat[:2])
        elif node.type == _TYPES.ELEMENTWISE:
            for source in list(_spread(node, written)):
                _cut(source, node)
    read = [graph.get_in_channels(node) for node in written if node.type != _TYPES.OUTPUT]
    return max((*written.values(), *(count for count in read if count is not None)), default=0)


def _written(graph: Any) -> Mapping[Any, int]:
    """How many channels what a node gives has, by the layers before it."""
    nodes = [node for node in graph.module2node.values() if node.type != _TYPES.OUTPUT]
    layers = {node: graph.get_out_channels(node) for node in nodes}
    known = {node: count for node, count in layers.items() if count is not None}
    changed = True
    while changed:
        changed = False
        for node in reversed(nodes):  # what comes first in the network comes last in the graph
            count = None if layers[node] is not None else _passed_on(node, known)
            if count is not None and count > known.get(node, 0):
                known[node], changed = count, True
    return known


def _passed_on(node: Any, known: Mapping[Any, int]) -> int | None:
    if _halves(node, known) or (node.type == _TYPES.CONCAT and _joins_channels(node, known)):
        return _shape(node.grad_fn)[_axis(node.grad_fn)]
    if node.type == _TYPES.RESHAPE and (flat := _flattened(node, known)):
        return flat[2]
    counts: list[int | None] = []
    for source in node.inputs:
        parts = _parts(source) if source.type == _TYPES.SPLIT and _splits_channels(source, known) else ()
        counts += [size for target, _, size in parts if target is node] or [known.get(source)]
    return max((count for count in counts if count is not None), default=None)


def _joins_channels(node: Any, written: Mapping[Any, int]) -> bool:
    counts = [
        (size if source.type == _TYPES.SPLIT and _splits_channels(source, written) else written.get(source), size)
        for source, _, size in _joined(node)
    ]
    return any(count is not None for count, _ in counts) and all(count in (None, size) for count, size in counts)


def _splits_channels(node: Any, written: Mapping[Any, int]) -> bool:
    sizes = _part_sizes(node.grad_fn)
    return bool(sizes) and bool(node.inputs) and written.get(node.inputs[0]) == sum(sizes)


def _halves(node: Any, written: Mapping[Any, int]) -> bool:
    """Whether it is a gated linear unit along the channels."""
    if not name_of(node.grad_fn).startswith("GluBackward") or node.type != _TYPES.ELEMENTWISE or not node.inputs:
        return False
    return written.get(node.inputs[0]) == 2 * _shape(node.grad_fn)[_axis(node.grad_fn)]


def _flattened(node: Any, written: Mapping[Any, int]) -> tuple[Any, Any, int] | None:
    """How channels go there and back, and how many are there, where axes become one, or a vector becomes a map.

    (N, ..., C, ...) -> (N, rows), (N, C, H, T) -> (N, rows, T), (N, T, C, H) -> (N, T, rows); (N, rows) -> (N, C, ...).
    """
    shapes = [size for _, size in _inputs(node)] + [_shape(node.grad_fn)]
    if len(shapes) != 2 or shapes[0] == shapes[1] or shapes[0][0] != shapes[1][0]:
        return None
    before, after = shapes
    channels, spreads = written.get(node.inputs[0]), len(before) == 2
    if spreads and (len(after) < 4 or channels != before[1]):
        return None
    deep, flat = (after[1:], before[1:]) if spreads else (before[1:], after[1:])
    if len(flat) > 1:  # a channel's axis is one of those that become one, if the others cannot be
        deep, flat, others = _apart(deep, flat)
        channels = None if set(others) & set(written.values()) else channels
    channels = deep[0] if spreads else channels
    if channels not in deep or len(flat) != 1 or math.prod(deep) != flat[0]:
        return None
    inner = math.prod(deep[deep.index(channels) + 1 :])
    rows, back = _Rows(channels, inner, flat[0]), _Channels(channels, inner)
    return (back, rows, channels) if spreads else (rows, back, flat[0])


def _apart(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """What is left of each without the axes that both begin and end with, and these axes."""
    least = min(len(one), len(other))
    first = next((at for at in range(least) if one[at] != other[at]), least)
    last = next((at for at in range(least - first) if one[-1 - at] != other[-1 - at]), least - first)
    return one[first : len(one) - last], other[first : len(other) - last], one[:first] + one[len(one) - last :]


def _spread(node: Any, written: Mapping[Any, int]) -> Iterator[Any]:
    """Inputs that hold one number for all channels of another: none of their channels is one of its channels."""
    shape, inputs = _shape(node.grad_fn), _inputs(node)
    for source, size in inputs:
        others = {written.get(other) for other, _ in inputs if other is not source}
        padded = (1,) * (len(shape) - len(size)) + size
        for axis, length in enumerate(shape):
            if length > 1 and length in others and padded[axis] == 1 and length not in size:
                yield source
                break


def _joined(node: Any) -> list[tuple[Any, int, int]]:
    """(input, where it starts along the joined axis, how long it is there)."""
    axis, found, start = _axis(node.grad_fn), [], 0
    sizes = [None if function is None else _shape(function, index)[axis] for function, index in _edges(node)]
    if sizes.count(None) == 1:  # what needs no gradient, as coordinates
        sizes[sizes.index(None)] = _shape(node.grad_fn)[axis] - sum(size or 0 for size in sizes)
    sources = iter(node.inputs)
    for edge, size in zip(_edges(node), sizes, strict=True):
        if size is None:
            return []
        if _followed(node, edge[0]):
            found.append((next(sources, None), start, size))
        start += size
    return [] if any(source is None for source, _, _ in found) else found


def _parts(node: Any) -> list[tuple[Any, int, int]]:
    """(output, where its part starts along the split axis, how long it is there)."""
    sizes, found, taken = _part_sizes(node.grad_fn), [], {}  # type: ignore[var-annotated]
    for target in node.outputs:
        parts = [index for function, index in _edges(target) if function is node.grad_fn]
        at = taken[target] = taken.get(target, -1) + 1
        if at < len(parts):
            found.append((target, sum(sizes[: parts[at]]), sizes[parts[at]]))
    return found


def _inputs(node: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """(input, its shape)."""
    shapes = [_shape(*edge) for edge in _edges(node) if _followed(node, edge[0])]
    return list(zip(node.inputs, shapes, strict=True)) if len(shapes) == len(node.inputs) else []


def _followed(node: Any, function: Any) -> bool:
    """Whether the graph has an input for it: not for constants and for weights of layers."""
    variable = getattr(function, "variable", None)
    return function is not None and (variable is None or any(each.module is variable for each in node.inputs))


def _part_sizes(function: Any) -> list[int]:
    axis = _axis(function)
    return [int(each.shape[axis]) for each in function._input_metadata]


def _edges(node: Any) -> list[tuple[Any, int]]:
    return list(getattr(node.grad_fn, "next_functions", ()))


def _shape(function: Any, index: int = 0) -> tuple[int, ...]:
    return tuple(int(size) for size in function._input_metadata[index].shape)


def name_of(function: Any) -> str:
    """What autograd calls a node: "SoftmaxBackward0"; empty if it has no name."""
    return str(function.name()) if hasattr(function, "name") else ""


def _axis(function: Any) -> int:
    axis = int(getattr(function, "_saved_dim", 1))
    return axis - 2**64 if axis >= 2**63 else axis  # a negative one, as autograd keeps it


class _Moved:
    """Index -> indices, in the form that Torch-Pruning calls: those in a range are moved by so many."""

    def __init__(self, *moves: tuple[range, int]) -> None:
        self._moves = moves

    def __call__(self, indices: Sequence[_HybridIndex]) -> list[_HybridIndex]:
        return [
            _HybridIndex(idx=index.idx + by, root_idx=index.root_idx)
            for of, by in self._moves
            for index in indices
            if index.idx in of
        ]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows that a channel becomes, in the form that Torch-Pruning calls."""

    channels: int
    inner: int  # rows in a row
    rows: int  # of all channels

    def __call__(self, indices: Sequence[_HybridIndex]) -> list[_HybridIndex]:
        starts = range(0, self.rows, self.channels * self.inner)
        return [
            _HybridIndex(idx=start + index.idx * self.inner + row, root_idx=index.root_idx)
            for index in indices
            if index.idx < self.channels
            for start in starts
            for row in range(self.inner)
        ]


@dataclasses.dataclass(frozen=True)
class _Channels:
    """The channel that a row belongs to, in the same form."""

    channels: int
    inner: int

    def __call__(self, indices: Sequence[_HybridIndex]) -> list[_HybridIndex]:
        places = {(i.idx // self.inner % self.channels, i.root_idx): None for i in indices}
        return [_HybridIndex(idx=channel, root_idx=root) for channel, root in places]


def _link(source: Any, target: Any, by: Any, there: Any, back: Any) -> None:
    """Say how channels go from a node to one that reads it, and back; each link between them once.

    Args:
        by: which of the two moves them; what the other does comes before or behind it.
    """
    for first, second, mapping in ((source, target, there), (target, source, back)):
        for dependency in first.dependencies:
            known = vars(dependency).setdefault("moved_by", [])
            if dependency.target is second and by not in known:
                known.append(by)
                dependency.index_mapping.insert(0 if by is first else len(dependency.index_mapping), mapping)
                break


def _cut(source: Any, target: Any) -> None:
    for first, second in ((source, target), (target, source)):
        first.dependencies = [each for each in first.dependencies if each.target is not second]
