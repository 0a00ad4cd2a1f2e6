"""Explicit Q/DQ pairs taken out of a graph of any origin: what is left computes in float, what they said is kept."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...core.errors import QuantizationError
from ..graph.names import names_read, unused
from ..graph.onnx_file import subgraphs
from .placement import never_negative
from .qdq import DIALECT_NOTE
from .qdq_pair import BYTES, Pair, PairReader

_PAIRS = ("QuantizeLinear", "DequantizeLinear")
# Compute with integers themselves: there is no float operator to go back to.
_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QGemm", "QAttention", "MatMulNBits")
_WORDS = ("_quantized", "_dequantized", "_DequantizeLinear_Output")  # what writers hang on a weight's name
_CAN_BE_NEGATIVE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stripped:
    """A float graph and what its pairs said, by the names of the float graph's tensors."""

    model: onnx.ModelProto
    pairs: Mapping[str, tuple[Pair, ...]]  # of activations and of weights
    activations: str | None  # the dialect's, where this package has written the file


def strip(model: onnx.ModelProto) -> Stripped:
    """Remove every pair; integer weights and biases become the floats they stand for.

    Where a pair has cut off at zero what could be negative, a Clip takes its place: quantizers leave out a Relu whose
    work the unsigned integers do.

    Raises:
        QuantizationError: no pairs; operators that compute with integers; scales computed at run time; names the node.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _refuse_integer_operators(copy)
    stripper = _Stripper(copy.graph)
    stripper.strip()
    stripper.cut(never_negative(copy))
    notes = {entry.key: entry.value for entry in copy.metadata_props}
    kept = [entry for entry in copy.metadata_props if entry.key != DIALECT_NOTE]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    return Stripped(
        model=copy,
        pairs={name: tuple(found) for name, found in stripper.pairs.items()},
        activations=notes.get(DIALECT_NOTE),
    )


def _refuse_integer_operators(model: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in model.graph.node}
    integer = sorted(kind for kind in kinds if kind.startswith(_INTEGER))
    if integer:
        raise QuantizationError(
            f"the graph computes with integers ({', '.join(integer)}); only Q/DQ pairs around float operators can be "
            "read: write it with pairs (ONNX Runtime: QuantFormat.QDQ), or start from the float model"
        )
    if not kinds & set(_PAIRS):
        raise QuantizationError("the graph has no QuantizeLinear or DequantizeLinear: there is nothing to read")
    for node in model.graph.node:
        for graph in subgraphs(node):
            if any(inner.op_type in _PAIRS for inner in graph.node):
                raise QuantizationError(
                    f"{node.op_type} '{node.name}': Q/DQ pairs inside it cannot be read; start from the float model"
                )


class _Stripper:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.pairs: dict[str, list[Pair]] = {}
        self._reader = PairReader(graph)
        self._arrays, self._makers = self._reader.arrays, self._reader.makers
        self._outputs = {value.name for value in graph.output}
        self._inputs = {value.name for value in graph.input}
        self._same: dict[str, str] = {}  # dequantized tensor -> the float tensor it stands for
        self._taken = set(self._arrays) | set(self._makers) | self._inputs
        self._floats: dict[tuple[str, ...], str] = {}  # inputs of a DequantizeLinear -> its float constant
        self._replaced: set[tuple[str, int]] = set()  # integers whose name the floats have taken, and their type

    def strip(self) -> None:
        for node in self._graph.node:
            if node.op_type == "DequantizeLinear":
                self._same[node.output[0]] = self._float_of(node)
        kept = [node for node in self._graph.node if not self._belongs_to_pair(node)]
        for node in kept:
            _rename(node, self._same)
        self._rename_outputs(kept)
        self._replace_nodes(kept)
        read = names_read(self._graph)
        kept_tensors = [
            tensor
            for tensor in self._graph.initializer
            if tensor.name in read and (tensor.name, tensor.data_type) not in self._replaced
        ]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept_tensors)
        del self._graph.value_info[:]

    def cut(self, positive: set[str]) -> None:
        """Put a Clip behind a node whose result only the unsigned integers of its pair kept from being negative."""
        self._replace_nodes([part for node in self._graph.node for part in self._with_clip(node, positive)])

    def _replace_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copied)

    def _float_of(self, node: onnx.NodeProto) -> str:
        """The tensor a DequantizeLinear gives back: a constant, or what went into the pair."""
        if node.input[0] in self._arrays:
            return self._constant(node)
        maker = self._makers.get(node.input[0])
        if maker is not None and maker.op_type == "Clip":  # torch keeps weights within -127 to 127 that way
            maker = self._makers.get(maker.input[0])
        if maker is None or maker.op_type != "QuantizeLinear":
            source = "an input of the graph" if maker is None else f"{maker.op_type} '{maker.name}'"
            raise QuantizationError(
                f"DequantizeLinear '{node.name}': reads integers from {source}; only Q/DQ pairs around float operators "
                "can be read: start from the float model"
            )
        pair, back = self._reader.pair(maker), self._reader.pair(node)
        if not np.array_equal(pair.scale, back.scale) or not np.array_equal(pair.zero, back.zero):
            raise QuantizationError(
                f"DequantizeLinear '{node.name}': its scale or zero point is not that of QuantizeLinear "
                f"'{maker.name}': the two change the numbers and are no pair; start from the float model"
            )
        name = self._resolved(maker.input[0])
        self.pairs.setdefault(name, []).append(pair)
        return name

    def _constant(self, node: onnx.NodeProto) -> str:
        """Integers that stand in the file, as the floats they are read as; shared between equal nodes."""
        key = tuple(node.input)
        if key not in self._floats:
            integers, pair = numpy_helper.to_array(self._arrays[node.input[0]]), self._reader.pair(node)
            shape = [-1 if index == pair.axis else 1 for index in range(integers.ndim)]
            scale, zero = pair.scale.reshape(shape), pair.zero.reshape(shape)
            values = ((integers.astype(np.int64) - zero) * scale).astype(np.float32)
            if self._only_read_by(key):
                self._taken.discard(node.input[0])
                self._replaced.add((node.input[0], self._arrays[node.input[0]].data_type))
            name = unused(_plain(node.input[0]), self._taken)
            self._graph.initializer.append(numpy_helper.from_array(values.reshape(integers.shape), name))
            self._floats[key] = name
            if pair.dtype in BYTES:  # an INT32 bias follows from the other two scales
                self.pairs[name] = [pair]
        return self._floats[key]

    def _only_read_by(self, key: tuple[str, ...]) -> bool:
        """Whether integers are an initializer that is of no use to any other node: the floats then take its name."""
        readers = [tuple(node.input) for node in self._graph.node if key[0] in node.input]
        return key[0] not in self._makers and key[0] not in self._outputs and all(other == key for other in readers)

    def _resolved(self, name: str) -> str:
        return self._same.get(name, name)

    def _belongs_to_pair(self, node: onnx.NodeProto) -> bool:
        """Q, DQ and the Clip that torch puts on integers; refuses integers that something else reads."""
        if node.op_type == "DequantizeLinear":
            return True
        first = self._makers.get(node.input[0]) if node.input else None
        if node.op_type == "QuantizeLinear":
            if node.output[0] in self._outputs:
                raise QuantizationError(f"output '{node.output[0]}' is integer; end the graph in a DequantizeLinear")
            return True
        if first is None or first.op_type != "QuantizeLinear":
            return False
        if node.op_type != "Clip":
            raise QuantizationError(
                f"{node.op_type} '{node.name}': computes with integers; only Q/DQ pairs around float operators can be "
                "read: start from the float model"
            )
        return True

    def _rename_outputs(self, nodes: list[onnx.NodeProto]) -> None:
        """A graph output that was dequantized is made by the float operator itself."""
        for output in sorted(self._outputs & set(self._same)):
            inner = self._same[output]
            if inner in self._inputs | self._outputs | set(self._floats.values()):
                nodes.append(helper.make_node("Identity", [inner], [output], name=unused(output, self._taken)))
                continue
            for node in nodes:
                _rename(node, {inner: output})
                node.output[:] = [output if name == inner else name for name in node.output]
            self.pairs[output] = self.pairs.pop(inner)
            self._same = {name: output if same == inner else same for name, same in self._same.items()}

    def _with_clip(self, node: onnx.NodeProto, positive: set[str]) -> Iterator[onnx.NodeProto]:
        yield node
        for index, name in enumerate(node.output):
            tops = [pair.high for pair in self.pairs.get(name, ()) if pair.axis is None and pair.low == 0]
            if not tops or name in positive or node.op_type not in _CAN_BE_NEGATIVE:
                continue
            before = unused(f"{name}_before_clip", self._taken)
            bounds = [unused(f"{name}_{end}", self._taken) for end in ("least", "most")]
            for bound, value in zip(bounds, (0.0, min(tops)), strict=True):
                self._graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), bound))
            node.output[index] = before
            yield helper.make_node("Clip", [before, *bounds], [name], name=unused(f"{name}_clip", self._taken))


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """What a node reads, and what graphs inside it read from around them."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for graph in subgraphs(node):
        for inner in graph.node:
            _rename(inner, names)


def _plain(name: str) -> str:
    """The name a weight had before it was quantized."""
    for word in _WORDS:
        name = name.removesuffix(word)
    return name
