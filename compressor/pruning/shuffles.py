"""Where channels go in a shuffle: Torch-Pruning takes pixel and channel shuffles for element-wise operations."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch_pruning._helpers import _HybridIndex

_NATIVE = ("PixelShuffle", "PixelUnshuffle", "NativeChannelShuffle", "ChannelShuffle")
_VIEWS = ("View", "UnsafeView", "ReshapeAlias")
_MOVES = ("Transpose", "Permute", "Clone", "Contiguous")


def follow(graph: Any) -> bool:
    """Tell a graph how the channels of its shuffles move, in place; whether it has any.

    A shuffle is one of torch's, or a view of (N, C, H, W) with more axes that are transposed and viewed so again.
    """
    found = False
    for node in list(graph.module2node.values()):
        chain = _chain(node.grad_fn)
        if not chain or not node.inputs:
            continue
        there = _moved(chain)
        if there is None:
            continue
        back: dict[int, list[int]] = {}
        for source, places in enumerate(there):
            for place in places:
                back.setdefault(place, []).append(source)
        before = node.inputs[0]
        _map(before, node, dict(enumerate(there)))
        _map(node, before, back)
        found = True
    return found


class _Mapping:
    """Index -> indices, in the form that Torch-Pruning calls."""

    def __init__(self, places: dict[int, list[int]]) -> None:
        self._places = places

    def __call__(self, indices: Sequence[_HybridIndex]) -> list[_HybridIndex]:
        pairs = {(place, each.root_idx): None for each in indices for place in self._places.get(each.idx, ())}
        return [_HybridIndex(idx=place, root_idx=root) for place, root in pairs]


def _map(source: Any, target: Any, places: dict[int, list[int]]) -> None:
    for dependency in source.dependencies:
        if dependency.target is target:
            dependency.index_mapping[0 if dependency.index_mapping[0] is None else 1] = _Mapping(places)


def _chain(last: Any) -> list[Any]:
    """Nodes of a shuffle from its output to its input, or none."""
    if _is(last, _NATIVE):
        return [last]
    if not _is(last, _VIEWS) or len(_shape(last)) != 4:
        return []
    chain = [last, *_until_view(last)]
    first = chain[-1]
    moved = any(_is(each, ("Transpose", "Permute")) for each in chain)
    sizes: Any = getattr(first, "_saved_self_sym_sizes", ())
    same = len(sizes) == 4 and sizes[1] == _shape(last)[1]
    return chain if _is(first, _VIEWS) and first is not last and moved and same else []


def _until_view(last: Any) -> Iterator[Any]:
    each = last
    while True:
        each = each.next_functions[0][0] if each.next_functions else None
        if each is None or not _is(each, (*_VIEWS, *_MOVES)):
            return
        yield each
        if _is(each, _VIEWS):
            return


def _is(function: Any, names: Sequence[str]) -> bool:
    name = function.name() if hasattr(function, "name") else ""
    return any(name.startswith(f"{each}Backward") for each in names)


def _shape(function: Any) -> list[int]:
    return [int(size) for size in function._input_metadata[0].shape]


def _moved(chain: Sequence[Any]) -> list[list[int]] | None:
    """Channel of the input -> channels of the output: the nodes are asked what gradient goes where."""
    shape = _shape(chain[0])
    channels, plane = shape[1], shape[2] * shape[3]
    gradient = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    for function in chain:
        gradient = function(gradient)
    if gradient.ndim != 4:
        return None
    return [(row.long() // plane % channels).unique().tolist() for row in gradient[0]]
