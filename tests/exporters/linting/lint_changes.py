"""Changes of what `lint_graphs.layer` makes: the nodes and the constants are given, to be changed in place."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..graphs import node
from .lint_graphs import S8, Change, Constants, Nodes


def in_constant_nodes(nodes: Nodes, constants: Constants) -> None:
    for name in ("s", "z"):
        nodes.insert(
            0, node("Constant", "", name, value=numpy_helper.from_array(np.asarray(constants.pop(name)), name))
        )


def unnamed_bias(nodes: Nodes, constants: Constants) -> None:
    """Some exporters write an empty name where there is no bias."""
    (made,) = [each for each in nodes if each.output[0] == "m"]
    made.input[:] = [*made.input[:2], ""]


def computed(name: str, kind: str = "Identity", **attributes: object) -> Change:
    """A parameter of the first pair is what an operator gives for a constant."""

    def change(nodes: Nodes, constants: Constants) -> None:
        constants["raw"] = constants[name]
        if kind == "Cast":
            constants["raw"] = np.float16(constants[name]) if name == "s" else np.float32(constants[name])
        nodes.insert(0, node(kind, "raw", "computed", **attributes))
        for made in nodes[1:3]:
            made.input[1 if name == "s" else 2] = "computed"

    return change


def from_data(name: str) -> Change:
    """A parameter of the first pair depends on the input: the range of this very batch."""

    def change(nodes: Nodes, constants: Constants) -> None:
        before = [node("ReduceMax", "x", "top", axes=[0, 1, 2, 3], keepdims=0), node("Abs", "top", "range")]
        if name == "z":
            before.append(node("Cast", "range", "cast", to=TensorProto.INT8))
        for made in nodes[:2]:
            made.input[1 if name == "s" else 2] = before[-1].output[0]
        nodes[:0] = before

    return change


def per_channel_activation(nodes: Nodes, constants: Constants) -> None:
    constants |= {"cs": np.full(8, 0.05, np.float32), "cz": np.zeros(8, S8)}
    for made in nodes[:2]:
        made.input[1], made.input[2] = "cs", "cz"
        made.attribute.append(helper.make_attribute("axis", 1))


def setting(**values: np.ndarray | np.generic) -> Change:
    """Other constants."""
    return lambda nodes, constants: constants.update(values)


def of_shape(*shape: int) -> Change:
    """Scales and zero points of the weights in another shape."""

    def change(nodes: Nodes, constants: Constants) -> None:
        constants |= {name: np.asarray(constants[name]).reshape(shape) for name in ("ws", "wz")}

    return change


def axis(value: int | None) -> Change:
    """Another axis of the weights' scales; None: the attribute is left out."""

    def change(nodes: Nodes, constants: Constants) -> None:
        for made in nodes:
            kept = [entry for entry in made.attribute if entry.name != "axis"]
            if len(kept) < len(made.attribute):
                del made.attribute[:]
                made.attribute.extend(kept if value is None else [*kept, helper.make_attribute("axis", value)])

    return change


def output_dtype(kind: int) -> Change:
    """The type of what both QuantizeLinear make, as an attribute."""

    def change(nodes: Nodes, constants: Constants) -> None:
        for made in nodes:
            if made.op_type == "QuantizeLinear":
                made.attribute.append(helper.make_attribute("output_dtype", kind))

    return change


def int8_bias(nodes: Nodes, constants: Constants) -> None:
    constants |= {"b": np.arange(8, dtype=S8), "bs": np.float32(0.1), "bz": S8(0)}
    nodes.insert(0, node("DequantizeLinear", "b bs bz", "bd"))
    nodes[-3].input[2] = "bd"
