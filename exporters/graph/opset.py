"""A model in a newer opset: ONNX's own converter, with what it loses put back."""

import onnx
from onnx import helper, inliner, version_converter

from .graph_view import opset_of
from .onnx_file import every_node

_RESIZE = 11  # from here on a Resize says how it places what it computes, and by default otherwise than before
_BEFORE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same in another opset, not below its own; calls of local functions, which are lost else, are written out.

    An Upsample, or a Resize of opset 10, becomes a Resize of the new defaults, which is another function where it
    interpolates: it says `asymmetric` here, as ONNX's operator reference has it of both.

    Args:
        model: not changed.

    Raises:
        RuntimeError: and others from C++, of which none is documented: it cannot be converted.
    """
    whole = inliner.inline_local_functions(model) if model.functions else model
    newer = version_converter.convert_version(whole, opset)
    if opset_of(model) < _RESIZE <= opset:
        for node in every_node(newer):
            said = {attribute.name for attribute in node.attribute}
            if node.op_type == "Resize":
                node.attribute.extend(helper.make_attribute(k, v) for k, v in _BEFORE.items() if k not in said)
    return newer
