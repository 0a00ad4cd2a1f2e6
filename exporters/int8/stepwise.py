"""A graph run node by node in float and as its INT8 file would, each layer changed before the next one is reached.

Every node runs once per batch and side, and a value is dropped after its last reader: reconstruction that is sequential
through a whole network costs about two forward passes instead of one per layer.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ...core.values import Arrays, QuantParams
from ..graph.graph_index import GraphIndex
from ..graph.names import names_read, reads, unused
from ..sessions.one_node import Constants, OneNode, alone
from .dialect import Dialect
from .layer import Layer, Visit
from .placement import Placement
from .qdq import activation_grid, weight_grid

_REMEDY = "; leave 'round' and 'bias-correction' out of recover"
Values = dict[str, list[np.ndarray]]  # tensor -> its value in each batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walked:
    """What a walk gives: the changed graph, and how much data it was shown."""

    model: onnx.ModelProto
    batches: int


def walk(
    model: onnx.ModelProto,
    placed: Placement,
    params: Mapping[str, QuantParams],
    dialect: Dialect,
    batches: Iterable[Arrays],
    visit: Visit,
    memory: int,
    device: str = "cpu",
) -> Walked:
    """Visit every INT8 layer in the graph's order; what `visit` returns is what the layers behind it see.

    Args:
        model: a canonical float graph; not changed.
        params: of every weight and activation, as for `qdq.write_qdq`.
        dialect: whose rounding is simulated; biases count as float.
        batches: input name -> array `(batch, ...)`.
        visit: may change `weight` and `bias`.
        memory: bytes that values may take; later batches that would not fit are left out, the first never is.

    Raises:
        QuantizationError: a node that cannot be run by itself.
    """
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        return Walked(model=model, batches=0)
    needed = _Walk(model, placed, params, dialect, lambda layer: layer, device).over([first])
    chosen = [first, *itertools.islice(stream, max(memory // max(needed, 1) - 1, 0))]
    walked = _Walk(model, placed, params, dialect, visit, device)
    walked.over(chosen)
    return Walked(model=walked.changed, batches=len(chosen))


class _Walk:
    def __init__(
        self,
        model: onnx.ModelProto,
        placed: Placement,
        params: Mapping[str, QuantParams],
        dialect: Dialect,
        visit: Visit,
        device: str,
    ) -> None:
        self._model, self._placed, self._params, self._dialect = model, placed, params, dialect
        self._visit, self._device, self._count = visit, device, 0
        self.changed = onnx.ModelProto()
        self.changed.CopyFrom(model)
        self._constants: Constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._altered = dict(self._constants)  # with what the visits changed
        self._last = {name: index for index, node in enumerate(model.graph.node) for name in reads(node)}
        self._graph = GraphIndex(model)
        self._taken = names_read(model.graph) | {name for node in model.graph.node for name in node.output}
        self._chosen = {node.name for node in model.graph.node if node.name in placed.nodes and _weighted(node, placed)}

    def over(self, feeds: Sequence[Arrays]) -> int:
        """Walk once; the most bytes that values took."""
        exact: Values = {value.name: [feed[value.name] for feed in feeds] for value in self._model.graph.input}
        int8 = {name: self._as_int8(name, values) for name, values in exact.items()}
        self._count, most = len(feeds), 0
        for index, (node, changed) in enumerate(zip(self._model.graph.node, self.changed.graph.node, strict=True)):
            runner = self._alone(node, self._constants, _firsts(exact))
            _store(runner.outputs, (runner.run(feed) for feed in _feeds(runner, exact, len(feeds))), exact)
            if node.name in self._chosen:
                self._layer(changed, exact, int8)
            else:
                self._plain(node, changed, runner, int8)
            most = max(most, _bytes(exact, int8))
            for name in [name for name in int8 if self._last.get(name, -1) <= index]:
                del exact[name], int8[name]
        return most

    def _alone(self, node: onnx.NodeProto, constants: Constants, example: Arrays) -> OneNode:
        return OneNode(node, self._model, constants, example, self._device, _REMEDY)

    def _plain(self, node: onnx.NodeProto, changed: onnx.NodeProto, runner: OneNode, int8: Values) -> None:
        if any(self._altered.get(name) is not self._constants.get(name) for name in reads(changed)):
            runner = self._alone(changed, self._altered, _firsts(int8))
        _store(runner.outputs, (runner.run(feed) for feed in _feeds(runner, int8, self._count)), int8)
        for name in runner.outputs:
            int8[name] = self._as_int8(name, int8[name])

    def _layer(self, node: onnx.NodeProto, exact: Values, int8: Values) -> None:
        holder = self._bias_holder(node)
        before = self._described(node, holder, exact, int8)
        after = self._visit(before)
        if after.weight is not before.weight:
            self._keep(node.input[1], after.weight)
        if after.bias is not None and after.bias is not before.bias and holder is not None:
            self._keep_bias(holder, after.bias)
        output = node.output[0]
        int8[output] = self._as_int8(output, list(after.run(after.quantized, after.bias)))

    def _described(self, node: onnx.NodeProto, holder: onnx.NodeProto | None, exact: Values, int8: Values) -> Layer:
        name, inputs = node.input[1], int8[node.input[0]]
        weight = numpy_helper.to_array(self._altered[name])
        axis = self._placed.weights[name]
        scale, limit = weight_grid(self._params[name], weight.ndim, axis, self._dialect)
        low, high = self._activation(node.output[0])

        def run(weight: np.ndarray, bias: np.ndarray | None) -> Iterator[np.ndarray]:
            single, constants = alone(node, weight, bias if holder is node else None)
            runner = self._alone(single, constants, {"data": inputs[0]})
            return (runner.run({"data": value})[0] for value in inputs)

        return Layer(
            node=node,
            weight=weight,
            axis=axis,
            bias=None if holder is None else self._bias(holder, weight.shape[axis]),
            scale=scale,
            limit=limit,
            low=low,
            high=high,
            tied=self._graph.only_reader(name) is None,
            inputs=inputs,
            wanted=exact[node.output[0]],
            run=run,
        )

    def _activation(self, output: str) -> tuple[float, float]:
        """What the Relu or Clip from zero that is fused to it keeps `output` within; no pair stands between them."""
        reader = self._graph.only_reader(output)
        end = reader.output[0] if reader is not None and reader.op_type in ("Relu", "Clip") else ""
        if output in self._placed.activations or end not in self._placed.never_negative:
            return -np.inf, np.inf
        return 0.0, self._placed.upper.get(end, np.inf)

    def _bias_holder(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node of the changed graph that adds this one's bias: a MatMul needs an Add behind it."""
        if node.op_type != "MatMul":
            return node
        reader = self._graph.only_reader(node.output[0])
        if reader is None or reader.op_type != "Add":
            return None
        (adds,) = [made for made in self.changed.graph.node if made.name == reader.name]
        constant = self._altered.get(_other(adds, node.output[0]))
        width = self._constants[node.input[1]].dims[-1]
        return adds if constant is not None and list(constant.dims) == [width] else None

    def _bias(self, holder: onnx.NodeProto, channels: int) -> np.ndarray:
        name = self._bias_name(holder)
        return np.zeros(channels, np.float32) if not name else numpy_helper.to_array(self._altered[name]).reshape(-1)

    def _bias_name(self, holder: onnx.NodeProto) -> str:
        if holder.op_type == "Add":
            return str(next(name for name in holder.input if name in self._altered))
        return str(holder.input[2]) if len(holder.input) > 2 else ""

    def _keep_bias(self, holder: onnx.NodeProto, bias: np.ndarray) -> None:
        """Under a name of its own where other nodes read the old one."""
        old = self._bias_name(holder)
        if old and self._graph.only_reader(old) is not None:
            self._keep(old, bias.reshape(self._altered[old].dims))
            return
        name = unused(old or f"{holder.name}_bias", self._taken)
        if old:
            holder.input[list(holder.input).index(old)] = name
        else:
            del holder.input[2:]
            holder.input.append(name)
        self._keep(name, bias)

    def _keep(self, name: str, values: np.ndarray) -> None:
        tensor = numpy_helper.from_array(values.astype(np.float32), name)
        for present in self.changed.graph.initializer:
            if present.name == name:
                present.CopyFrom(tensor)
                break
        else:
            self.changed.graph.initializer.append(tensor)
        self._altered = {**self._altered, name: tensor}

    def _as_int8(self, name: str, values: list[np.ndarray]) -> list[np.ndarray]:
        """Through the pair that the file has here."""
        if name not in self._placed.activations:
            return values
        params = self._params[self._placed.source[name]]
        scale, zero = activation_grid(params, name, self._placed, self._dialect)
        bounds = np.iinfo(zero.dtype)
        return [_rounded(value, scale, int(zero), bounds.min, bounds.max) for value in values]


def _rounded(value: np.ndarray, scale: np.ndarray, zero: int, lowest: int, highest: int) -> np.ndarray:
    """What QuantizeLinear and DequantizeLinear make of it."""
    found: np.ndarray = value / scale  # and on in place: it may be as large as memory allows
    np.rint(found, out=found)
    np.clip(found, lowest - zero, highest - zero, out=found)
    found *= scale
    return found


def _weighted(node: onnx.NodeProto, placed: Placement) -> bool:
    return len(node.input) > 1 and node.input[1] in placed.weights


def _other(add: onnx.NodeProto, name: str) -> str:
    """What is added to `name`."""
    return str(add.input[1] if add.input[0] == name else add.input[0])


def _feeds(runner: OneNode, values: Values, count: int) -> Iterator[dict[str, np.ndarray]]:
    for batch in range(count):
        yield {name: values[name][batch] for name in runner.inputs}


def _store(names: Sequence[str], results: Iterable[list[np.ndarray]], values: Values) -> None:
    for name, of_batches in zip(names, zip(*results, strict=True), strict=True):
        values[name] = list(of_batches)


def _firsts(values: Values) -> dict[str, np.ndarray]:
    return {name: of_batches[0] for name, of_batches in values.items()}


def _bytes(*sides: Values) -> int:
    arrays = {id(array): array.nbytes for side in sides for of_batches in side.values() for array in of_batches}
    return sum(arrays.values())
