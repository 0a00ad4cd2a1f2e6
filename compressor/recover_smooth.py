"""SmoothQuant: outlier channels behind a normalization become the weights' burden, the function stays."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ..exporters.graph_index import GraphIndex, attribute, replaced

_ALPHA = 0.5  # the paper's value for most models: the burden is shared evenly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A normalization's gain and bias, and all that reads its result: weights of matrix products."""

    output: str
    affine: tuple[str, ...]  # initializers (channels,) that scale with the result: gain and bias
    readers: Sequence[onnx.NodeProto]


def sites(model: onnx.ModelProto) -> list[Site]:
    """Where outliers can be migrated: nothing but products with constant matrices reads the normalized tensor."""
    graph = GraphIndex(model)
    return [site for node in graph.nodes for name in node.output[:1] if (site := _site(name, node, graph)) is not None]


def tensors(model: onnx.ModelProto) -> dict[str, int]:
    """The normalized tensors, whose ranges `smooth` needs, and the axis of their channels."""
    return {site.output: -1 for site in sites(model)}


def smooth(model: onnx.ModelProto, ranges: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, str]:
    """Divide channel j of the activations by s_j, in the norm's gain and bias, and multiply row j of the weights by it.

    `s_j = max|X_j| ** a / max|W_j| ** (1 - a)` with a = 0.5, equation 4 of Xiao et al., SmoothQuant (ICML 2023); the
    weights are those of all products that read the tensor.

    Args:
        model: a canonical float graph; not changed.
        ranges: of `tensors`, `(2, channels)`: smallest and largest value.

    Returns:
        The graph, which computes the same within rounding; and what was done.
    """
    graph = GraphIndex(model)
    found = [site for site in sites(model) if site.output in ranges]
    values: dict[str, np.ndarray] = {}
    for site in found:
        largest = np.max([np.abs(_rows(node, graph)).max(1) for node in site.readers], axis=0)
        values |= rescaled(site, _scale(np.abs(ranges[site.output]).max(0).astype(np.float64), largest), graph)
    return replaced(model, values), f"smoothed {len(found)} normalizations"


def rescaled(site: Site, scale: np.ndarray, graph: GraphIndex) -> dict[str, np.ndarray]:
    """New values of the initializers that divide the channels by `scale` `(channels,)` and multiply the rows by it."""
    values = {name: _constant(name, graph) / scale for name in site.affine}
    for node in site.readers:
        weight = _rows(node, graph) * scale[:, None]
        values[node.input[1]] = weight.T if attribute(node, "transB", 0) else weight
    return values


def _scale(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 for a channel that is zero on one side: there is nothing to share."""
    alive = (activations > 0) & (weights > 0)
    scale = np.where(alive, activations, 1.0) ** _ALPHA / np.where(alive, weights, 1.0) ** (1 - _ALPHA)
    return np.where(alive, scale, 1.0)


def _site(output: str, node: onnx.NodeProto, graph: GraphIndex) -> Site | None:
    affine = _affine(node, graph)
    readers = graph.readers(output)
    if not affine or not readers or not all(_is_product(reader, output, graph) for reader in readers):
        return None
    channels = _constant(affine[0], graph).size
    if any(_rows(reader, graph).shape[0] != channels for reader in readers):
        return None
    return Site(output=output, affine=affine, readers=readers)


def _affine(node: onnx.NodeProto, graph: GraphIndex) -> tuple[str, ...]:
    """Gain and bias of a LayerNormalization, or of the Mul and Add that end one written out; empty: there are none."""
    if node.op_type == "LayerNormalization":
        return _vectors([name for name in node.input[1:3] if name], graph)
    if node.op_type == "Mul":
        return _vectors(_constants(node, graph), graph)
    if node.op_type != "Add":
        return ()
    bias = _vectors(_constants(node, graph), graph)
    inner = [graph.producers[name] for name in node.input if name in graph.producers]
    alone = len(inner) == 1 and inner[0].op_type == "Mul" and graph.only_reader(inner[0].output[0]) is not None
    gain = _vectors(_constants(inner[0], graph), graph) if alone else ()
    return (*gain, *bias) if gain and bias else ()


def _constants(node: onnx.NodeProto, graph: GraphIndex) -> list[str]:
    return [name for name in node.input if graph.constant(name) is not None]


def _vectors(names: Sequence[str], graph: GraphIndex) -> tuple[str, ...]:
    """The names, where each is a vector that nobody else reads; else nothing."""
    values = [graph.own_constant(name) for name in names]
    return tuple(names) if all(value is not None and value.ndim == 1 and value.size > 1 for value in values) else ()


def _is_product(node: onnx.NodeProto, output: str, graph: GraphIndex) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != output or attribute(node, "transA", 0):
        return False
    weight = graph.own_constant(node.input[1])
    return weight is not None and weight.ndim == 2


def _rows(node: onnx.NodeProto, graph: GraphIndex) -> np.ndarray:
    """The weight as `(inputs, outputs)`, float64."""
    weight = _constant(node.input[1], graph)
    return weight.T if attribute(node, "transB", 0) else weight


def _constant(name: str, graph: GraphIndex) -> np.ndarray:
    found = graph.constant(name)
    assert found is not None, f"'{name}' is no float constant"
    return found.astype(np.float64)
