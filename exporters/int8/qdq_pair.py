"""What a QuantizeLinear or a DequantizeLinear says: scale, zero point, integer type, axis."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...core.errors import QuantizationError

BYTES = ("int8", "uint8")
_CONSTANT_ALIASES = ("Cast", "CastLike", "Identity")  # exporters leave them on scales


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Scale and zero point as they stand in the file, and the integers between them."""

    scale: np.ndarray  # float64 () or (channels,)
    zero: np.ndarray  # int64, of the same shape
    dtype: str  # "int8", "uint8", ...
    axis: int | None  # None: one scale for the whole tensor

    @property
    def low(self) -> float:
        """The smallest real number the integers stand for."""
        return float(np.min((np.iinfo(self.dtype).min - self.zero) * self.scale))

    @property
    def high(self) -> float:
        """The largest one."""
        return float(np.max((np.iinfo(self.dtype).max - self.zero) * self.scale))


class PairReader:
    """Reads the nodes of one graph; what a scale or zero point is computed from has to be constant."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.arrays = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.arrays[node.output[0]] = node.attribute[0].t
        self.makers = {name: node for node in graph.node for name in node.output}

    def pair(self, node: onnx.NodeProto) -> Pair:
        """Raises QuantizationError: blocks, types other than 8 bits (for activations), scales computed at run time."""
        where = f"{node.op_type} '{node.name}'"
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if attributes.get("block_size"):
            raise QuantizationError(f"{where}: blocks of scales cannot be read; start from the float model")
        scale = np.squeeze(self._value(node.input[1], where).astype(np.float64))
        zero, dtype = np.zeros((), np.int64), self._dtype(node, attributes)
        if len(node.input) > 2 and node.input[2]:
            zero = np.squeeze(self._value(node.input[2], where).astype(np.int64))
        if node.op_type == "QuantizeLinear" and dtype not in BYTES:
            raise QuantizationError(f"{where}: {dtype} cannot be read, only int8 and uint8; start from the float model")
        axis = None if scale.ndim == 0 else attributes.get("axis", 1)
        return Pair(scale=scale, zero=np.broadcast_to(zero, scale.shape), dtype=dtype, axis=axis)

    def _dtype(self, node: onnx.NodeProto, attributes: Mapping[str, int]) -> str:
        typed = node.input[2] if len(node.input) > 2 else ""
        if not typed and node.op_type == "DequantizeLinear":
            typed = node.input[0]
        if typed in self.arrays:
            return str(helper.tensor_dtype_to_np_dtype(self.arrays[typed].data_type))
        maker = self.makers.get(typed)
        if maker is not None and maker.op_type == "QuantizeLinear":  # a DequantizeLinear that leaves its zero point out
            return self._dtype(maker, {attribute.name: attribute.i for attribute in maker.attribute})
        cast = {attribute.name: attribute.i for attribute in maker.attribute} if maker is not None else attributes
        kind = cast.get("to", cast.get("output_dtype", 0)) or onnx.TensorProto.UINT8  # the standard's default
        return str(helper.tensor_dtype_to_np_dtype(kind))

    def _value(self, name: str, where: str) -> np.ndarray:
        if name in self.arrays:
            return numpy_helper.to_array(self.arrays[name])
        maker = self.makers.get(name)
        if maker is None or maker.op_type not in _CONSTANT_ALIASES:
            raise QuantizationError(
                f"{where}: its scale or zero point '{name}' is computed at run time (dynamic quantization); "
                "only constants can be read: start from the float model"
            )
        return self._value(maker.input[0], where)
