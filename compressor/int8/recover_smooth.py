"""SmoothQuant: outlier channels behind a normalization become the weights' burden, the function stays."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...exporters.graph.graph_index import GraphIndex, attribute, replaced
from ...exporters.graph.names import names_read, unused
from .smooth_scale import best_scale

_WORTH = 1.25  # times smaller has a Mul to make the noise, in power: 1 dB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A tensor that weights of matrix products read, and what its channels can be divided in."""

    output: str
    affine: tuple[str, ...]  # initializers (channels,) that scale with it, a norm's gain and bias; none: by a Mul
    readers: Sequence[onnx.NodeProto]


def sites(model: onnx.ModelProto) -> list[Site]:
    """Where outliers can be migrated: nothing but products with constant matrices reads the normalized tensor."""
    graph = GraphIndex(model)
    return [site for node in graph.nodes for name in node.output[:1] if (site := _site(name, node, graph)) is not None]


def in_front(model: onnx.ModelProto) -> list[Site]:
    """Other tensors that MatMuls with a constant matrix read: the channels can be divided by a Mul in front of these.

    None in front of a Gemm: it ends convolutional networks, and what comes in is INT8.
    """
    graph = GraphIndex(model)
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type == "MatMul" and _is_product(node, node.input[0], graph):
            found.setdefault(node.input[0], []).append(node)
    norms = {site.output for site in sites(model)}
    return [
        Site(output=name, affine=(), readers=readers)
        for name, readers in found.items()
        if name not in norms and graph.constant(name) is None
    ]


def tensors(model: onnx.ModelProto) -> dict[str, int]:
    """The tensors whose ranges `smooth` needs, and the axis of their channels."""
    return {site.output: -1 for site in [*sites(model), *in_front(model)]}


def smooth(model: onnx.ModelProto, ranges: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, str]:
    """Divide channel j of the activations by s_j and multiply row j of the weights by it, see `smooth_scale`.

    A normalization is divided in its gain and bias. Where others read its result too, as in the residuals of BERT, and
    where there is none, a Mul does it, if that makes the noise smaller.

    Args:
        model: a canonical float graph; not changed.
        ranges: of `tensors`, `(2, channels)`: smallest and largest value.

    Returns:
        The graph, which computes the same within rounding; and what was done.
    """
    graph = GraphIndex(model)
    norms = [site for site in sites(model) if site.output in ranges]
    values: dict[str, np.ndarray] = {}
    for site in norms:
        scale, _ = best_scale(ranges[site.output], [_rows(node, graph) for node in site.readers])
        values |= rescaled(site, scale, graph)
    added: dict[str, np.ndarray] = {}
    for site in in_front(model):
        if site.output in ranges:
            scale, gain = best_scale(ranges[site.output], [_rows(node, graph) for node in site.readers])
            if gain > _WORTH:
                values |= rescaled(site, scale, graph)
                added[site.output] = scale
    told = f"smoothed {len(norms)} normalizations" + (f", {len(added)} other inputs of products" if added else "")
    return _divided(replaced(model, values), added), told


def _divided(model: onnx.ModelProto, scales: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with a Mul by 1 / scale between these tensors and the MatMuls that read them; it is changed."""
    taken = names_read(model.graph) | {name for node in model.graph.node for name in [node.name, *node.output]}
    factors, results, nodes = {}, {}, []
    for name, scale in scales.items():
        factors[name], results[name] = unused(f"{name}_smoothing", taken), unused(f"{name}_smoothed", taken)
        model.graph.initializer.append(numpy_helper.from_array((1 / scale).astype(np.float32), factors[name]))
    waiting = dict(results)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        name = node.input[0] if node.op_type == "MatMul" and node.input[1] in constants else ""
        if name in waiting:
            called = unused(f"{name}_smooth", taken)
            nodes.append(helper.make_node("Mul", [name, factors[name]], [waiting.pop(name)], name=called))
        if name in results:
            node.input[0] = results[name]
        nodes.append(node)
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
    return onnx.shape_inference.infer_shapes(model)


def rescaled(site: Site, scale: np.ndarray, graph: GraphIndex) -> dict[str, np.ndarray]:
    """New values of the initializers that divide the channels by `scale` `(channels,)` and multiply the rows by it."""
    values = {name: _constant(name, graph) / scale for name in site.affine}
    for node in site.readers:
        weight = _rows(node, graph) * scale[:, None]
        values[node.input[1]] = weight.T if attribute(node, "transB", 0) else weight
    return values


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
