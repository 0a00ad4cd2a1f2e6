"""Builders of small graphs, each legal in TensorRT or broken in one way."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graphs import node, random

Nodes = list[onnx.NodeProto]
Constants = dict[str, np.ndarray | np.generic | TensorProto]
Change = Callable[[Nodes, Constants], None]
FLOAT, S8, U8 = TensorProto.FLOAT, np.int8, np.uint8
# operator -> shape of x, of its weights, axis of their output channels as TensorRT wants them, shape of y
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]] = {
    "Conv": ((2, 8, 6, 6), (8, 8, 3, 3), 0, (2, 8, 4, 4)),
    "ConvTranspose": ((2, 8, 6, 6), (8, 8, 3, 3), 0, (2, 8, 8, 8)),
    "Gemm": ((2, 8), (8, 8), 0, (2, 8)),
    "MatMul": ((2, 8), (8, 8), 1, (2, 8)),
}
PAIR: Constants = {"s": np.float32(0.05), "z": S8(0)}


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray | np.generic | TensorProto],
    x: Sequence[int],
    y: Sequence[int | str],
    *,
    opset: int = 17,
    types: tuple[int, int] = (FLOAT, FLOAT),
    more_inputs: Mapping[str, Sequence[int]] | None = None,
) -> onnx.ModelProto:
    """From `x` to `y`; a node is named for what it makes."""
    for made in nodes:
        made.name = made.name or f"n_{made.output[0]}"
    graph = helper.make_graph(
        list(nodes),
        "lint",
        [
            helper.make_tensor_value_info("x", types[0], x),
            *(helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (more_inputs or {}).items()),
        ],
        [helper.make_tensor_value_info("y", types[1], y)],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
        ],
    )
    domains = {made.domain for made in nodes} - {""}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 19 else 10)


def layer(
    kind: str = "Conv",
    *,
    zero: np.generic | None = S8(0),  # noqa: B008  # a number
    scale: float = 0.05,
    scale_type: type = np.float32,
    weight_type: type = S8,
    weight_zero: int | None = 0,
    weight_scale: float = 0.01,
    axis: int | None = -1,
    bias: str = "float",
    group: int = 1,
    opset: int = 17,
    change: Change | None = None,
) -> onnx.ModelProto:
    """`x` -> pair -> one operator with INT8 weights -> pair -> `y`; by default what TensorRT takes.

    Args:
        kind: key of `SHAPES`.
        zero: zero point of the activations; None: none is written.
        scale: of the activations.
        scale_type: of every scale, and of `x` and `y`.
        weight_type: of the weights as stored; float32: they go through a Q/DQ pair.
        weight_zero: zero point of the weights; None: none is written.
        weight_scale: of the first channel; the others' is 0.01.
        axis: of the weights' scales; -1: the output channels; None: one scale for the tensor.
        bias: "float", "int32" (dequantized) or "none".
        group: of a convolution.
        change: called with the nodes and the constants, to change them.
    """
    x, shape, channels, y = SHAPES[kind]
    if group > 1:
        shape = (shape[0], shape[1] // group, *shape[2:])
    axis = channels if axis == -1 else axis
    constants: Constants = {"s": scale_type(scale), "ys": scale_type(scale * 4)}
    nodes = [
        node("QuantizeLinear", f"x {_pair('s', zero)}", "q"),
        node("DequantizeLinear", f"q {_pair('s', zero)}", "d"),
    ]
    if zero is not None:
        constants["z"] = zero
    nodes += _weights(constants, shape, axis, scale_type, weight_type, weight_zero, weight_scale)
    inputs = f"d k{_bias(nodes, constants, 'none' if kind == 'MatMul' else bias, y[1], scale_type)}"
    attributes = {"transB": 1} if kind == "Gemm" else {"group": group} if group > 1 else {}
    nodes.append(node(kind, inputs, "m", **attributes))
    nodes += [
        node("QuantizeLinear", f"m {_pair('ys', zero)}", "yq"),
        node("DequantizeLinear", f"yq {_pair('ys', zero)}", "y"),
    ]
    if change is not None:
        change(nodes, constants)
    kinds = (helper.np_dtype_to_tensor_dtype(np.dtype(scale_type)),) * 2
    return model(nodes, constants, x, y, opset=opset, types=kinds)


def _pair(scale: str, zero: np.generic | None) -> str:
    return scale if zero is None else f"{scale} z"


def _weights(
    constants: Constants,
    shape: tuple[int, ...],
    axis: int | None,
    scale_type: type,
    kind: type,
    zero: int | None,
    first_scale: float,
) -> Nodes:
    scales = np.full(1 if axis is None else shape[axis], 0.01, scale_type)
    scales[0] = first_scale
    integer = S8 if kind is np.float32 else kind
    limits = np.iinfo(integer)
    values = np.clip(np.rint(random(*shape, scale=40)) + (0 if integer is S8 else 128), limits.min + 1, limits.max)
    constants["ws"] = scales[0] if axis is None else scales
    constants["w"] = values.astype(kind) if kind is not np.float32 else (values * 0.01).astype(np.float32)
    if zero is not None:
        constants["wz"] = np.full(np.shape(constants["ws"]), zero, integer)
    pair, place = "ws" if zero is None else "ws wz", {} if axis is None else {"axis": axis}
    if kind is not np.float32:
        return [node("DequantizeLinear", f"w {pair}", "k", **place)]
    return [node("QuantizeLinear", f"w {pair}", "wq", **place), node("DequantizeLinear", f"wq {pair}", "k", **place)]


def _bias(nodes: Nodes, constants: Constants, kind: str, count: int, scale_type: type) -> str:
    if kind == "float":
        constants["b"] = random(count, seed=1).astype(scale_type)
        return " b"
    if kind == "int32":
        constants |= {"b": np.arange(count, dtype=np.int32), "bs": np.full(count, 0.001, scale_type)}
        constants["bz"] = np.zeros(count, np.int32)
        nodes.append(node("DequantizeLinear", "b bs bz", "bd", axis=0))
        return " bd"
    return ""


def pair(between: Sequence[onnx.NodeProto] = (), x: Sequence[int] = (2, 8), y: Sequence[int] = (2, 8), **more: object) -> onnx.ModelProto:  # fmt: skip
    """`x` -> QuantizeLinear -> `between`, from `q` to `i` -> DequantizeLinear -> `y`; `more` are other constants."""
    nodes = [node("QuantizeLinear", "x s z", "q"), *between]
    nodes.append(node("DequantizeLinear", f"{'i' if between else 'q'} s z", "y"))
    return model(nodes, PAIR | more, x, y)


def residual(zero: np.generic = S8(0)) -> onnx.ModelProto:  # noqa: B008  # a number
    """Two convolutions, an Add of both, a Relu, pooling and a Gemm, pairs around each."""
    constants: Constants = {"s": np.float32(0.05), "z": zero, "ws": np.full(8, 0.01, np.float32), "wz": np.zeros(8, S8)}
    constants |= {f"w{i}": random(8, 8, 3, 3, seed=i, scale=40).astype(S8) for i in range(2)}
    constants["g"] = random(8, 8, seed=9, scale=40).astype(S8)
    nodes = [node("DequantizeLinear", f"{name} ws wz", f"{name}_d", axis=0) for name in ("w0", "w1", "g")]

    def quantized(name: str, end: str = "") -> str:
        nodes.append(node("QuantizeLinear", f"{name} s z", f"{name}_q"))
        nodes.append(node("DequantizeLinear", f"{name}_q s z", end or f"{name}_d"))
        return str(nodes[-1].output[0])

    x = quantized("x")
    nodes.append(node("Conv", f"{x} w0_d", "a", pads=[1] * 4))
    nodes.append(node("Relu", "a", "ar"))
    nodes.append(node("Conv", f"{quantized('ar')} w1_d", "b", pads=[1] * 4))
    nodes.append(node("Add", f"{quantized('b')} {x}", "c"))
    nodes.append(node("Relu", "c", "r"))
    nodes.append(node("GlobalAveragePool", quantized("r"), "p"))
    nodes.append(node("Flatten", quantized("p"), "f"))
    nodes.append(node("Gemm", "f g_d", "o", transB=1))
    quantized("o", "y")
    return model(nodes, constants, (2, 8, 6, 6), (2, 8))


def integer(kind: str) -> onnx.ModelProto:
    """One of ONNX's integer operators."""
    constants: Constants = PAIR | {"w": random(8, 8, scale=40).astype(S8), "ws": np.float32(0.01), "k": random(8, 8, 3, 3, scale=40).astype(S8)}  # fmt: skip
    quantize, last = node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "i s z", "y")
    to_float = node("Cast", "i", "y", to=FLOAT)
    flat, image = ((2, 8), (2, 8)), ((2, 8, 6, 6), (2, 8, 4, 4))
    nodes, shapes = {
        "QLinearConv": ([quantize, node(kind, "q s z k ws z s z", "i"), last], image),
        "QLinearMatMul": ([quantize, node(kind, "q s z w ws z s z", "i"), last], flat),
        "ConvInteger": ([quantize, node(kind, "q k z z", "i"), to_float], image),
        "MatMulInteger": ([quantize, node(kind, "q w z z", "i"), to_float], flat),
        "DynamicQuantizeLinear": ([node(kind, "x", "q ds dz"), node("DequantizeLinear", "q ds dz", "y")], flat),
    }[kind]
    return model(nodes, constants, *shapes)


def microsoft(kind: str, inputs: str, **constants: np.ndarray | np.generic) -> onnx.ModelProto:
    """An operator of ONNX Runtime's own."""
    made = node(kind, inputs, "y")
    made.domain = "com.microsoft"
    return model([made], constants, (2, 8), (2, 8))


def one(kind: str, x: tuple[int, ...], y: tuple[int | str, ...], opset: int = 17, to: int = FLOAT, **attributes: object) -> onnx.ModelProto:  # fmt: skip
    """One float operator."""
    return model([node(kind, "x", "y", **attributes)], {}, x, y, opset=opset, types=(FLOAT, to))


def in_branches(zero: np.generic) -> onnx.ModelProto:
    """A pair in each branch of an If."""

    def branch(name: str) -> onnx.GraphProto:
        nodes = [node("QuantizeLinear", "x s z", f"{name}q"), node("DequantizeLinear", f"{name}q s z", f"{name}o")]
        for made in nodes:
            made.name = f"n_{made.output[0]}"
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}o", FLOAT, [2, 8])])

    nodes = [
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m s", "c"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    return model(nodes, {"s": np.float32(0.05), "z": zero}, (2, 8), (2, 8))


def loop(trips: str = "trips", go: str = "go", reads: str = "") -> onnx.ModelProto:
    """A state that is multiplied three times; `reads` says which of `i` and `c`, iteration and condition, the body reads."""
    nodes = [
        helper.make_node("Identity", ["c" if "c" in reads else "go"], ["again"], name="n_again"),
        helper.make_node("Cast", ["i" if "i" in reads else "trips"], ["number"], name="n_number", to=FLOAT),
        helper.make_node("Mul", ["a", "number"], ["b"], name="n_b"),
    ]
    given = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [*given, helper.make_tensor_value_info("a", FLOAT, [2, 8])],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", FLOAT, [2, 8]),
        ],
    )
    made = helper.make_node("Loop", [trips, go, "x"], ["y"], body=body)
    return model([made], {"trips": np.array(3), "go": np.array(True)}, (2, 8), (2, 8))


def input_as_output() -> onnx.ModelProto:
    """Its input is the second output."""
    made = one("Relu", (2, 8), (2, 8))
    made.graph.output.append(helper.make_tensor_value_info("x", FLOAT, [2, 8]))
    return made


def in_function(zero: np.generic) -> onnx.ModelProto:
    """A pair in a local function."""
    made = model([helper.make_node("Pair", ["x"], ["y"], domain="local")], {}, (2, 8), (2, 8))
    nodes = [
        node("Constant", "", "s", value=numpy_helper.from_array(np.asarray(np.float32(0.05)))),
        node("Constant", "", "z", value=numpy_helper.from_array(np.asarray(zero))),
        node("QuantizeLinear", "a s z", "q"),
        node("DequantizeLinear", "q s z", "b"),
    ]
    made.functions.append(helper.make_function("local", "Pair", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
    return made


def narrow(kind: int, block: int = 0) -> onnx.ModelProto:
    """A MatMul with weights of this type, 4-bit or INT8; with one scale for each block of rows, or for each column."""
    if kind == TensorProto.INT8:
        weights = numpy_helper.from_array(random(64, 8, scale=40).astype(S8), "w")
    else:
        weights = helper.make_tensor("w", kind, [64, 8], np.clip(random(512, scale=3), 0, 7).astype(int).tolist())
    scales = np.full((64 // block, 8) if block else 8, 0.01, np.float32)
    zero = helper.make_tensor("wz", kind, scales.shape, [0] * scales.size)
    place = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes = [node("DequantizeLinear", "w ws wz", "k", **place), node("MatMul", "x k", "y")]
    return model(nodes, {"w": weights, "ws": scales, "wz": zero}, (2, 64), (2, 8), opset=21)


def eight_bit_float(kind: int) -> onnx.ModelProto:
    """A pair of an 8-bit float type."""
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    zero = helper.make_tensor("z", kind, [], [0.0])
    return model(nodes, {"s": np.float32(0.05), "z": zero}, (2, 8), (2, 8), opset=19)
