"""Seeded damage for `fuzz.py`: bytes, texts and ONNX graphs that are not what they were."""

import random
import re
from collections.abc import Callable
from typing import Any

import onnx

VALUES = (
    *("", "-1", "0", "1e999", "nan", "-0.0", "true", '"x"', '"../../x"', "[]", "{}", "99999999999999999999", "[1, -1]"),
    *('"\\u0000"', '"os:system"', "[[]]", "1979-05-27", '"<script>"', "0.5", '"original"'),
)

Mutation = Callable[[bytes, random.Random], bytes]


def unchanged(data: bytes, rng: random.Random) -> bytes:
    return data


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def spliced(data: bytes, rng: random.Random) -> bytes:
    """A piece is missing, is there twice or is somewhere else."""
    first, last = sorted(rng.randrange(len(data)) for _ in range(2))
    piece, rest = data[first:last], data[:first] + data[last:]
    at = rng.randrange(len(rest) + 1)
    return rng.choice((rest, data[:last] + piece + data[last:], rest[:at] + piece + rest[at:]))


def other_value(data: bytes, rng: random.Random) -> bytes:
    """One value of a text file is another; names and syntax stay."""
    places = list(re.finditer(rb"(?<=[=:,\[] )[^\s,\]}]+|(?<=\[)[^\s,\]}]+", data))
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(VALUES).encode() + data[place.end() :]


def other_line(data: bytes, rng: random.Random) -> bytes:
    """A line goes, comes twice, moves or gets another name."""
    lines = data.split(b"\n")
    index, at = rng.randrange(len(lines)), rng.randrange(len(lines))
    line = lines.pop(index)
    how = rng.randrange(4)
    if how == 1:
        lines[at:at] = [line, line]
    elif how == 2:
        lines.insert(at, line)
    elif how == 3:
        lines.insert(index, re.sub(rb"\w+", lambda word: word[0] + b"x" if rng.random() < 0.3 else word[0], line))
    return b"\n".join(lines)


def other_graph(data: bytes, rng: random.Random) -> bytes:
    """A valid message with something else in it: what a careless exporter or a hostile author writes."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_GRAPH)(model, graph, rng)
    return bytes(model.SerializeToString())


def _drop(model: Any, graph: Any, rng: random.Random) -> None:
    field = rng.choice((graph.node, graph.initializer, graph.input, graph.output, model.opset_import))
    if len(field):
        del field[rng.randrange(len(field))]


def _twice(model: Any, graph: Any, rng: random.Random) -> None:
    field = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    if len(field):
        field.add().CopyFrom(rng.choice(field))


def _rewire(model: Any, graph: Any, rng: random.Random) -> None:
    node = rng.choice(graph.node)
    side = rng.choice((node.input, node.output))
    names = [name for each in graph.node for name in (*each.input, *each.output)] + ["", "nowhere", "x" * 5000]
    if len(side):
        side[rng.randrange(len(side))] = rng.choice(names)


def _operator(model: Any, graph: Any, rng: random.Random) -> None:
    node = rng.choice(graph.node)
    node.op_type = rng.choice(
        ("Conv", "Loop", "If", "Reshape", "NoSuch", "Gemm", "QuantizeLinear", "Gather", "Scan", "")
    )
    node.domain = rng.choice(("", "", "com.microsoft", "who.knows"))


def _attribute(model: Any, graph: Any, rng: random.Random) -> None:
    with_some = [node for node in graph.node if len(node.attribute)]
    if not with_some:
        return
    attribute = rng.choice(rng.choice(with_some).attribute)
    kind = rng.randrange(4)
    if kind == 0:
        attribute.i = rng.choice((-1, 0, 2**62))
    elif kind == 1 and len(attribute.ints):
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((-1, 0, 2**40))
    elif kind == 2:
        attribute.type = rng.randrange(14)
    else:
        attribute.name += "x"


def _tensor(model: Any, graph: Any, rng: random.Random) -> None:
    if not len(graph.initializer):
        return
    tensor = rng.choice(graph.initializer)
    kind = rng.randrange(5)
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == 1 and len(tensor.dims):
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 2**31, 2**60))
    elif kind == 2:
        tensor.data_type = rng.randrange(24)
    elif kind == 3:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        entry = {
            "location": rng.choice(("../../etc/passwd", "/etc/passwd", "model.onnx", "")),
            "offset": "-5",
            "length": "9" * 18,
        }
        for key, value in entry.items():
            tensor.external_data.add(key=key, value=value)
    else:
        tensor.raw_data = bytes(rng.randrange(256) for _ in range(len(tensor.raw_data)))


def _shape(model: Any, graph: Any, rng: random.Random) -> None:
    value = rng.choice((*graph.input, *graph.output))
    dimensions = value.type.tensor_type.shape.dim
    if len(dimensions):
        dimension = rng.choice(dimensions)
        dimension.dim_value = rng.choice((-1, 0, 1, 2**31, 2**62))
    else:
        value.type.tensor_type.elem_type = rng.randrange(24)


def _versions(model: Any, graph: Any, rng: random.Random) -> None:
    if len(model.opset_import):
        rng.choice(model.opset_import).version = rng.choice((0, 1, 6, 9, 99, 2**40))
    model.ir_version = rng.choice((0, 3, model.ir_version, 999))


_GRAPH = (_drop, _twice, _rewire, _operator, _attribute, _tensor, _shape, _versions)
TEXT: tuple[Mutation, ...] = (other_value, other_value, other_line, spliced, flipped, cut)
BINARY: tuple[Mutation, ...] = (flipped, cut, spliced)
