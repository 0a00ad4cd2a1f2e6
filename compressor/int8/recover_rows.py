"""A weighted layer as one matrix product: rows of its input, drawn over all batches, and what they should give."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import onnx

from ...exporters.graph.graph_index import attribute
from ...exporters.int8.layer import Layer

_MEMORY = 64 << 20  # bytes of input rows
_MOST, _FEWEST = 4096, 256  # rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """`wanted[g] ~ inputs[g] @ weight[g].T + bias` for each group g of a convolution; one group elsewhere."""

    inputs: np.ndarray  # (groups, rows, inputs per group)
    wanted: np.ndarray  # (groups, rows, outputs per group)


def draw(layer: Layer, rng: np.random.Generator) -> Rows:
    """Rows from random samples and positions; the same number from every batch, as many as memory allows."""
    width = layer.weight.size // layer.weight.shape[layer.axis] * _groups(layer.node)
    count = min(_MOST, max(_FEWEST, _MEMORY // (4 * width)))
    each = math.ceil(count / len(layer.inputs))
    pick = _of_convolution if layer.node.op_type == "Conv" else _of_product
    parts = [pick(layer, *pair, each, rng) for pair in zip(layer.inputs, layer.wanted, strict=True)]
    inputs, wanted = (np.concatenate(side) for side in zip(*parts, strict=True))
    groups = _groups(layer.node)
    return Rows(inputs=_grouped(inputs, groups), wanted=_grouped(wanted, groups))


def as_matrix(array: np.ndarray, layer: Layer) -> np.ndarray:
    """What is laid out like the weight as `(groups, outputs per group, inputs per group)`."""
    turned = array if layer.axis == 0 else array.T
    return turned.reshape(_groups(layer.node), len(turned) // _groups(layer.node), -1)


def from_matrix(matrix: np.ndarray, layer: Layer) -> np.ndarray:
    """The inverse of `as_matrix`."""
    shape = layer.weight.shape if layer.axis == 0 else layer.weight.T.shape
    turned = matrix.reshape(shape)
    return turned if layer.axis == 0 else turned.T


def _groups(node: onnx.NodeProto) -> int:
    return attribute(node, "group", 1) if node.op_type == "Conv" else 1


def _grouped(rows: np.ndarray, groups: int) -> np.ndarray:
    """`(rows, groups * n)` -> `(groups, rows, n)`."""
    return np.ascontiguousarray(rows.reshape(len(rows), groups, -1).transpose(1, 0, 2))


def _of_product(
    layer: Layer, inputs: np.ndarray, wanted: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    rows, results = inputs.reshape(-1, inputs.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    chosen = rng.permutation(len(rows))[:count]
    return rows[chosen], results[chosen]


def _of_convolution(
    layer: Layer, inputs: np.ndarray, wanted: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Windows `(rows, channels * kernel)`; `(N, C, ...)` is only gathered where a row was drawn."""
    windows = _windows(layer, inputs)
    places = rng.permutation(math.prod(wanted.shape[2:]) * len(wanted))[:count]
    sample, *position = np.unravel_index(places, (len(wanted), *wanted.shape[2:]))
    where: Any = (sample, slice(None), *position)
    return windows[where].reshape(len(places), -1), wanted[where]


def _windows(layer: Layer, inputs: np.ndarray) -> np.ndarray:
    """A view `(N, C, *output, *kernel)` of the padded input."""
    kernel, rank = layer.weight.shape[2:], inputs.ndim - 2
    strides, dilations = (_sizes(layer.node, name, rank) for name in ("strides", "dilations"))
    extent = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(layer.node, inputs.shape[2:], extent, strides)
    padded = np.pad(inputs, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, rank + 2)))
    steps = itertools.chain(
        (slice(None, None, step) for step in strides), (slice(None, None, step) for step in dilations)
    )
    return windows[(slice(None), slice(None), *steps)]


def _pads(node: onnx.NodeProto, sizes: tuple[int, ...], extent: list[int], strides: list[int]) -> list[tuple[int, int]]:
    rule = next((found.s.decode() for found in node.attribute if found.name == "auto_pad"), "NOTSET")
    if rule in ("NOTSET", "VALID"):
        explicit = next((list(found.ints) for found in node.attribute if found.name == "pads"), [0] * 2 * len(sizes))
        return list(zip(explicit[: len(sizes)], explicit[len(sizes) :], strict=True))
    found = []
    for size, window, stride in zip(sizes, extent, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if rule == "SAME_UPPER" else (large, small))
    return found


def _sizes(node: onnx.NodeProto, name: str, rank: int) -> list[int]:
    return next((list(found.ints) for found in node.attribute if found.name == name), [1] * rank)
