"""Integer tensors that hang together between quantizers, and their zero points rewritten without changing a number."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from ..graph.graph_view import GraphView, attribute

# Move integers and do not compute with them; the first input carries them (all of them: Concat).
_PASSING = (
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """One set of integer tensors: what makes them and what turns them back into real numbers."""

    tensors: frozenset[str]
    quantizers: tuple[onnx.NodeProto, ...]  # QuantizeLinear and DequantizeLinear, as they are found
    constants: tuple[str, ...]  # those of the tensors that are constants
    passing: bool  # nodes that move integers are in it
    closed: bool  # nothing else makes or reads them, no caller sees them


def regions(view: GraphView) -> Iterator[Region]:
    """Every region of a graph; of those that hold a quantizer."""
    seen: set[str] = set()
    for node in view.quantizers():
        name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        if name not in seen:
            found = _region(view, name)
            seen |= found.tensors
            yield found


def region_of(view: GraphView, node: onnx.NodeProto) -> Region:
    """The region of one quantizer."""
    return _region(view, node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])


def can_be_shifted(view: GraphView, region: Region, kind: int) -> bool:
    """Whether it is all of one 8-bit type: the other one holds the same numbers, 128 more or less, zero points too."""
    return (
        view.main
        and region.closed
        and all(view.integer_type(node) == kind for node in region.quantizers)
        and all(view.constant(node, 2) is not None for node in region.quantizers)
    )


def is_centred(view: GraphView, region: Region) -> bool:
    """Whether it is UINT8 around 128, which is INT8 around 0."""
    if not can_be_shifted(view, region, TensorProto.UINT8):
        return False
    zeros = [view.constants[node.input[2]] for node in region.quantizers]
    return all(zero.size > 0 and bool((zero == 128).all()) for zero in zeros)


def starts_at_zero(view: GraphView, region: Region) -> bool:
    """Whether it is what Relus give, in UINT8 around 128: its lower half is never used."""
    makers = [node for node in region.quantizers if node.op_type == "QuantizeLinear"]
    return (
        is_centred(view, region)
        and not region.constants
        and all(view.producer(node.input[0], "Relu") is not None for node in makers)
    )


def can_be_recentred(view: GraphView, region: Region) -> bool:
    """Whether it is constants alone whose values less their zero points fit into INT8 with zero point 0."""
    if not (view.main and region.closed and len(region.constants) == 1 and not region.passing):
        return False
    if any(node.op_type == "QuantizeLinear" or view.constant(node, 2) is None for node in region.quantizers):
        return False
    if len({_parameters(view, node) for node in region.quantizers}) != 1:
        return False
    values = centred(view, region)
    return bool(values.min(initial=0) >= -128 and values.max(initial=0) <= 127)


def centred(view: GraphView, region: Region) -> np.ndarray:
    """The constant of a region less its zero point, in INT16."""
    node, name = region.quantizers[0], region.constants[0]
    values, zero = view.constants[name].astype(np.int16), view.constants[node.input[2]].astype(np.int16)
    return np.asarray(values - along(zero, values.ndim, attribute(node, "axis", 1)))


def along(parameters: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """Scales or zero points, so shaped that they stand along `axis` of a tensor of this rank."""
    if parameters.size == 1:
        return parameters.reshape(())
    return parameters.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def folds(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a DequantizeLinear of INT32 works on constants alone, one scale for each value or one for all."""
    values, scale, zero = (view.constant(node, index) for index in range(3))
    if not (view.main and view.integer_type(node) == TensorProto.INT32 and node.op_type == "DequantizeLinear"):
        return False
    if values is None or scale is None or (zero is None and view.input(node, 2)) or node.output[0] in view.outputs:
        return False
    return scale.ndim <= 1


def _parameters(view: GraphView, node: onnx.NodeProto) -> tuple[str, int]:
    return view.input(node, 2), attribute(node, "axis", 1)


def _region(view: GraphView, first: str) -> Region:
    tensors, waiting, quantizers = {first}, [first], []
    constants: list[str] = []
    passing, closed = False, True
    while waiting:
        name = waiting.pop()
        closed = closed and name not in view.outputs and name not in view.inputs
        maker = view.producers.get(name)
        if name in view.constants and (maker is None or maker.op_type == "Constant"):
            constants.append(name)
        elif maker is None:
            closed = False
        touching = [
            *([maker] if maker is not None and maker.op_type != "Constant" else []),
            *view.readers.get(name, ()),
        ]
        for node in touching:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and _carries(node, name):
                quantizers.append(node)
            elif node.op_type in _PASSING and _moved(node, name):
                passing = True
                more = [other for other in _carried(node) if other not in tensors]
                tensors |= set(more)
                waiting += more
            else:
                closed = False
    return Region(
        tensors=frozenset(tensors),
        quantizers=tuple({id(node): node for node in quantizers}.values()),
        constants=tuple(constants),
        passing=passing,
        closed=closed,
    )


def _carries(node: onnx.NodeProto, name: str) -> bool:
    """As integers: what a QuantizeLinear makes, what a DequantizeLinear reads; not a zero point."""
    return bool(name == (node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]))


def _carried(node: onnx.NodeProto) -> list[str]:
    outputs = node.output[:1] if node.op_type == "MaxPool" else node.output  # its second holds indices
    return [*(node.input if node.op_type == "Concat" else node.input[:1]), *(name for name in outputs if name)]


def _moved(node: onnx.NodeProto, name: str) -> bool:
    return name in _carried(node)
