"""What a lint has found, rewritten so that the file computes the same, or says what else: a fix for each such rule."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from ..graph.empty_bias import leave_out_empty_bias
from ..graph.graph_editor import GraphEditor
from ..graph.graph_view import attribute, opset_of
from ..graph.half import QDQ_OPSET
from ..graph.opset import at_opset
from ..int8.integer_region import (
    Region,
    along,
    can_be_recentred,
    can_be_shifted,
    centred,
    folds,
    is_centred,
    regions,
    starts_at_zero,
)
from .lint import Finding

_OPSET = 17  # per-channel scales need 13; what `canonicalise` raises to as well
_MOST_PASSES = 4  # a fix may bring out what another one fixes; no chain of them is longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
    """A model without what could be fixed, and what was done to it."""

    model: onnx.ModelProto
    changes: tuple[str, ...]
    failures: tuple[str, ...]  # what was tried and did not work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fix:
    """One rewriting: how many places were changed, and what that means."""

    rewrite: Callable[[GraphEditor], int]
    said: str  # with {count}


def fix(model: onnx.ModelProto, lint: Callable[[onnx.ModelProto], Sequence[Finding]]) -> Fixed:
    """Rewrite what `lint` finds fixable.

    Args:
        model: not changed.
        lint: the findings of a model; asked again after each pass.
    """
    changes: list[str] = []
    failures: dict[str, None] = {}
    for _ in range(_MOST_PASSES):
        rules = {finding.rule for finding in lint(model) if finding.fixable}
        before = len(changes)
        for rule, opset in OPSETS.items():
            if rule in rules:
                model = _raised(model, opset, changes, failures)
        for rule, entry in FIXES.items():
            if rule in rules:
                model = _rewritten(model, entry, changes)
        if len(changes) == before:
            break
    return Fixed(model=model, changes=tuple(changes), failures=tuple(failures))


def _raised(model: onnx.ModelProto, opset: int, changes: list[str], failures: dict[str, None]) -> onnx.ModelProto:
    before = opset_of(model)
    if before >= opset:
        return model
    try:
        raised = at_opset(model, opset)
    except Exception as error:  # the C++ converter raises several kinds, none of them documented
        failures[f"opset {before} cannot be raised to {opset}: {str(error).strip().splitlines()[0]}"] = None
        return model
    del raised.graph.value_info[:]  # types may have changed with the opset
    changes.append(f"opset raised from {before} to {opset}")
    return raised


def _rewritten(model: onnx.ModelProto, entry: Fix, changes: list[str]) -> onnx.ModelProto:
    editor = GraphEditor(model)
    count = entry.rewrite(editor)
    if not count:
        return model
    changes.append(entry.said.format(count=count))
    return editor.finished()


def _to_int8(editor: GraphEditor) -> int:
    """UINT8 around 128 is INT8 around 0, 128 less in every number."""
    found = [region for region in regions(editor.view) if is_centred(editor.view, region)]
    for region in found:
        _write(editor, region, np.dtype(np.int8), -128)
    return len(found)


def _to_uint8(editor: GraphEditor) -> int:
    """INT8 is UINT8, 128 more in every number and zero point; weights stay as they are, kernels want those signed."""
    found = [
        region
        for region in regions(editor.view)
        if can_be_shifted(editor.view, region, TensorProto.INT8) and not _weights(editor, region)
    ]
    for region in found:
        _write(editor, region, np.dtype(np.uint8), 128)
    return len(found)


def _weights(editor: GraphEditor, region: Region) -> bool:
    """Whether it holds constants, as integers or as what a QuantizeLinear reads."""
    made = [node.input[0] for node in region.quantizers if node.op_type == "QuantizeLinear"]
    return bool(region.constants) or any(name in editor.view.constants for name in made)


def _write(editor: GraphEditor, region: Region, kind: np.dtype, step: int) -> None:
    view = editor.view
    names = {*region.constants, *(node.input[2] for node in region.quantizers)}
    named = {name: view.constants[name].astype(np.int16) + step for name in sorted(names)}
    written = {name: editor.constant(f"{name}_{kind.name}", values.astype(kind)) for name, values in named.items()}
    for node in region.quantizers:
        node.input[2] = written[node.input[2]]
        for entry in [entry for entry in node.attribute if _says_type(node, entry)]:
            node.attribute.remove(entry)
    for name in region.constants:
        for node in view.readers[name]:
            _rename(node, name, written[name])


def _rename(node: onnx.NodeProto, name: str, new: str) -> None:
    for index, read in enumerate(node.input):
        node.input[index] = new if read == name else read


def _says_type(node: onnx.NodeProto, entry: onnx.AttributeProto) -> bool:
    """Whether an attribute names the integer type; of a DequantizeLinear the same name stands for its float type."""
    return node.op_type == "QuantizeLinear" and entry.name == "output_dtype"


def _recentred(editor: GraphEditor) -> int:
    """Constants less their zero point, where that fits into INT8."""
    view, count = editor.view, 0
    for region in regions(view):
        if not can_be_recentred(view, region):
            continue
        name, first = region.constants[0], region.quantizers[0]
        values, zero = centred(view, region).astype(np.int8), np.zeros(view.constants[first.input[2]].shape, np.int8)
        names = editor.constant(f"{name}_int8", values), editor.constant(f"{first.input[2]}_int8", zero)
        for node in region.quantizers:
            node.input[0], node.input[2] = names
        count += 1
    return count


def _folded(editor: GraphEditor) -> int:
    """INT32 constants as the floats they stand for: `(integer - zero point) * scale`, as ONNX computes it."""
    view, count = editor.view, 0
    for node in view.quantizers():
        if folds(view, node):
            axis, zero = attribute(node, "axis", 1), view.constant(node, 2)
            values, scale = view.constants[node.input[0]], view.constants[node.input[1]]
            shifted = values if zero is None else values - along(zero, values.ndim, axis)
            real = shifted.astype(np.float32) * along(scale.astype(np.float32), values.ndim, axis)
            editor.replace(node, real.astype(scale.dtype))
            count += 1
    return count


def _with_zero_points(editor: GraphEditor) -> int:
    """Zero points of 0 in INT8 as many as there are scales, where there are none or too few."""
    view, count = editor.view, 0
    for node in view.quantizers():
        scale = view.constant(node, 1)
        zero = view.constant(node, 2)
        if scale is None or view.integer_type(node) != TensorProto.INT8 or (zero is None and view.input(node, 2)):
            continue
        if zero is None or (zero.size != scale.size and not zero.any()):
            name = editor.constant(f"{node.input[1]}_zero_point", np.zeros(scale.shape, np.int8))
            del node.input[2:]
            node.input.append(name)
            count += 1
    return count


def _without_empty_inputs(editor: GraphEditor) -> int:
    """A bias without a name left out."""
    return leave_out_empty_bias(editor.view.nodes)


def _from_zero(editor: GraphEditor) -> int:
    """UINT8 from 0 in place of UINT8 around 128, with the same scale, for what is never negative."""
    found = [region for region in regions(editor.view) if starts_at_zero(editor.view, region)]
    for region in found:
        _write(editor, region, np.dtype(np.uint8), -128)
    return len(found)


# rule -> the opset that it is raised to, by ONNX's own converter
OPSETS: Mapping[str, int] = {"opset": _OPSET, "scale-type": QDQ_OPSET}
_ZERO_POINTS = Fix(rewrite=_with_zero_points, said="{count} zero point(s) of 0 written that were missing")
# rule -> how it is rewritten, in this order
FIXES: Mapping[str, Fix] = {
    "unsigned": Fix(
        rewrite=_to_int8, said="{count} tensor(s) in UINT8 around 128 written as INT8 around 0: the same numbers"
    ),
    "zero-point": Fix(rewrite=_recentred, said="{count} constant(s) written as INT8 around 0: the same numbers"),
    "int32-bias": Fix(rewrite=_folded, said="{count} INT32 bias(es) written in float: the same numbers"),
    "empty-input": Fix(rewrite=_without_empty_inputs, said="{count} bias(es) without a name left out"),
    "missing-zero-point": _ZERO_POINTS,
    "zero-point-count": _ZERO_POINTS,
    "signed-activations": Fix(
        rewrite=_to_uint8,
        said="{count} tensor(s) in INT8 written as UINT8, 128 more and the zero point too: the same numbers",
    ),
    "zero-point-after-relu": Fix(
        rewrite=_from_zero,
        said="{count} tensor(s) behind a Relu in UINT8 from 0, not around 128, the scale unchanged: "
        "what was clipped at 127 steps is now clipped at 255",
    ),
}
