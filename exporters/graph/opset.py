"""A model in a newer opset: ONNX's own converter, with what it loses put back."""

from collections.abc import Mapping

import onnx
from onnx import helper, inliner, version_converter

from ...core.errors import ArtifactError
from .graph_view import attribute, opset_of, views
from .names import unused
from .onnx_file import every_node, every_node_of, subgraphs

_RESIZE = 11  # from here on a Resize says how it places what it computes, and by default otherwise than before
_ONE_AXIS = 13  # from here on these work along one axis, before over all from theirs on
_CHANGED = {"Resize": _RESIZE, "Upsample": _RESIZE, **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _ONE_AXIS)}


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same in another opset, not below its own; calls of local functions, which are lost else, are written out.

    An Upsample, or a Resize of opset 10, becomes a Resize of the new defaults, which is another function: it says
    `asymmetric` here, as ONNX's operator reference has it of both, and takes the nearest pixel as ONNX Runtime does. A
    Hardmax over several axes gets them as one, which the converter does for Softmax and LogSoftmax alone.

    Args:
        model: not changed.

    Raises:
        ArtifactError: a Resize of opset 10 that takes the nearest pixel as no newer one does; a function that cannot be
            written out.
        RuntimeError: and others from C++, of which none is documented: it cannot be converted.
    """
    whole = _without_calls(model) if model.functions else model
    before = opset_of(model)
    nearest = _nearest_modes(whole) if before < _RESIZE <= opset else None
    newer = version_converter.convert_version(whole, opset)
    if nearest is not None:
        _place_as_before(newer, nearest)
    if before < _ONE_AXIS <= opset:
        _flatten_hardmax(newer.graph, {name for node in every_node(newer) for name in (*node.input, *node.output)})
    return newer


def _place_as_before(newer: onnx.ModelProto, nearest: Mapping[str, str]) -> None:
    for node in every_node(newer):
        if node.op_type == "Resize":
            mode = nearest.get(node.output[0], "floor")
            before = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": mode}
            said = {attribute.name for attribute in node.attribute}
            node.attribute.extend(helper.make_attribute(k, v) for k, v in before.items() if k not in said)


def _flatten_hardmax(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Write every Hardmax of before opset 13 as one of rows, with the shape put back behind it."""
    nodes = []
    for node in graph.node:
        for inner in subgraphs(node):
            _flatten_hardmax(inner, taken)
        axis = attribute(node, "axis", 1)
        if node.op_type != "Hardmax" or node.domain or axis == -1:  # the last one alone is the same
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        shape, rows, largest = (unused(f"{y}_{part}", taken) for part in ("shape", "rows", "largest"))
        nodes += [
            helper.make_node("Shape", [x], [shape], name=f"{node.name}_shape"),
            helper.make_node("Flatten", [x], [rows], name=f"{node.name}_rows", axis=axis),
            helper.make_node("Hardmax", [rows], [largest], name=node.name, axis=-1),
            helper.make_node("Reshape", [largest, shape], [y], name=f"{node.name}_back"),
        ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _without_calls(model: onnx.ModelProto) -> onnx.ModelProto:
    """Local functions written out, those of another opset than the model's in the model's."""
    check_functions(model)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    known = {value.name for value in (*typed.graph.input, *typed.graph.value_info, *typed.graph.output)}
    for tensor in typed.graph.initializer:  # the inliner converts nothing that reads a tensor without a type
        if tensor.name not in known:
            typed.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    whole = inliner.inline_local_functions(typed, convert_version=True)
    functions = {(function.domain, function.name) for function in model.functions}
    left = next((node for node in every_node(whole) if (node.domain, node.op_type) in functions), None)
    if left is not None:
        raise ArtifactError(
            f"the local function '{left.domain}::{left.op_type}' cannot be written out where it is called; export the "
            "model without functions"
        )
    return whole


def check_functions(model: onnx.ModelProto) -> None:
    """Refuse local functions of an opset in which one of their operators is another function than in the model's.

    Raises:
        ArtifactError: names function and operator.
    """
    opset = opset_of(model)
    for function in model.functions:
        own = opset_of(function)
        kinds = sorted({node.op_type for node in every_node_of(function.node)} & set(_CHANGED))
        changed = [kind for kind in kinds if (own < _CHANGED[kind]) != (opset < _CHANGED[kind])]
        if changed:
            raise ArtifactError(
                f"the local function '{function.domain}::{function.name}' computes {changed[0]} as opset {own} does, "
                f"and the model has {opset}; export it with one opset"
            )


def _nearest_modes(model: onnx.ModelProto) -> dict[str, str]:
    """How each Resize of opset 10 rounds, by its output: up on an axis that shrinks, down on one that grows.

    An Upsample only enlarges.
    """
    found = {}
    for view in views(model):
        for node in view.nodes:
            mode = next((entry.s for entry in node.attribute if entry.name == "mode"), b"nearest")
            if node.op_type != "Resize" or mode != b"nearest":
                continue
            scales = view.constant(node, 1)
            if scales is None or (scales.min() < 1 < scales.max()):
                said = "are computed" if scales is None else f"are {', '.join(f'{scale:g}' for scale in scales.flat)}"
                raise ArtifactError(
                    f"Resize '{node.name}': its scales {said}, and up to opset 10 the nearest pixel is rounded up "
                    "where an axis shrinks and down where it grows, which no newer Resize does; export it with opset "
                    "11 or later"
                )
            found[node.output[0]] = "ceil" if scales.max() <= 1 else "floor"
    return found
