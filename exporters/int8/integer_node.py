"""One of ONNX Runtime's fused INT8 nodes, computed in numpy with sums as a CPU without VNNI gives them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...core.values import Arrays
from . import saturation

# What the inputs of an operator are, in their order.
_ROLES = {
    "QLinearConv": "data data_scale data_zero weight weight_scale weight_zero scale zero bias",
    "QLinearMatMul": "data data_scale data_zero weight weight_scale weight_zero scale zero",
    "QGemm": "data data_scale data_zero weight weight_scale weight_zero bias scale zero",
    "MatMulIntegerToFloat": "data weight data_scale weight_scale data_zero weight_zero float_bias",
}


class IntegerNode:
    """A node of one of the operators above.

    Args:
        node: with unsigned activations and signed weights.
        weight: its weight as the graph holds it.
    """

    def __init__(self, node: onnx.NodeProto, weight: np.ndarray) -> None:
        self._keys = attributes(node)
        self._names = roles(node)
        self._is_conv = node.op_type == "QLinearConv"
        self._kernel: tuple[int, ...] = weight.shape[2:]
        self._groups: int = self._keys.get("group", 1)
        if self._is_conv:
            self._matrices = saturation.as_matrices(weight, self._groups)
        else:
            self._matrices = [weight.T if self._keys.get("transB") else weight]
        depthwise = self._is_conv and saturation.is_depthwise(weight, self._groups)
        self.can_saturate = not depthwise and any(saturation.can_saturate(each).any() for each in self._matrices)

    def run(self, values: Arrays) -> np.ndarray:
        """The node's output.

        Args:
            values: every tensor it reads, by name.
        """
        found = {role: values[name] for role, name in self._names.items()}
        last = bool(self._keys.get("channels_last")) or not self._is_conv
        data = found["data"] if last else np.moveaxis(found["data"], 1, -1)
        zero = int(found.get("data_zero", 0))
        parts = np.split(data, self._groups, axis=-1)
        windows = [im2col(part, self._kernel, self._keys, zero) for part in parts] if self._is_conv else parts
        sums = [_sums(rows, each, zero, found) for rows, each in zip(windows, self._matrices, strict=True)]
        result = _scaled(np.concatenate(sums, axis=-1), found, float(self._keys.get("alpha", 1.0)))
        return result if last else np.ascontiguousarray(np.moveaxis(result, -1, 1))


def roles(node: onnx.NodeProto) -> dict[str, str]:
    """What its inputs are -> their names; empty for an operator that is not computed here."""
    named = zip(_ROLES.get(node.op_type, "").split(), node.input, strict=False)
    return {role: name for role, name in named if name}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute -> value."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def im2col(data: np.ndarray, kernel: Sequence[int], keys: Mapping[str, Any], padding: int) -> np.ndarray:
    """Windows of `(batch, *spatial, C)` as `(batch, *spatial out, K)`, K the kernel positions times C."""
    rank = len(kernel)
    strides, dilations = keys.get("strides", [1] * rank), keys.get("dilations", [1] * rank)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(data.shape[1:-1], reach, strides, keys)
    padded = np.pad(data, [(0, 0), *pads, (0, 0)], constant_values=padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
    every = [slice(None), *(slice(None, None, step) for step in strides), slice(None)]
    chosen = windows[(*every, *(slice(None, None, step) for step in dilations))]  # (batch, *out, C, *kernel)
    rows = np.moveaxis(chosen, rank + 1, -1)
    return rows.reshape(*rows.shape[: rank + 1], -1)


def _pads(
    sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int], keys: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Before and behind, of every spatial axis."""
    auto, rank = keys.get("auto_pad", b"NOTSET"), len(sizes)
    if not auto.startswith(b"SAME"):
        given = keys.get("pads", [0] * 2 * rank) if auto == b"NOTSET" else [0] * 2 * rank
        return list(zip(given[:rank], given[rank:], strict=True))
    totals = [
        max((math.ceil(size / step) - 1) * step + width - size, 0)
        for size, width, step in zip(sizes, reach, strides, strict=True)
    ]
    less = [(total // 2, total - total // 2) for total in totals]
    return less if auto == b"SAME_UPPER" else [(behind, before) for before, behind in less]


def _sums(rows: np.ndarray, weight: np.ndarray, zero: int, found: Arrays) -> np.ndarray:
    """Sums of one group, zero points taken off as the kernels do: outside of what saturates."""
    flat = rows.reshape(-1, rows.shape[-1])
    sums: np.ndarray = saturation.products(flat, weight) - np.int32(zero) * weight.sum(axis=0, dtype=np.int32)
    weight_zero = found.get("weight_zero")
    if weight_zero is not None and weight_zero.any():
        taken = flat.sum(axis=1, dtype=np.int32)[:, None] - np.int32(zero * len(weight))
        sums = sums - taken * weight_zero.astype(np.int32)
    return sums.reshape(*rows.shape[:-1], -1)


def _scaled(sums: np.ndarray, found: Arrays, alpha: float) -> np.ndarray:
    """Sums `(..., N)` with their bias, as floats or as integers of the result's scale."""
    sums = sums + found.get("bias", np.int32(0))
    scale = np.float32(alpha) * found["data_scale"] * found["weight_scale"]
    if "scale" not in found:
        return np.asarray(sums.astype(np.float32) * scale + found.get("float_bias", np.float32(0)))
    zero = found["zero"]
    bounds = np.iinfo(zero.dtype)
    scaled = sums.astype(np.float32) * (scale / found["scale"])
    clipped = np.clip(scaled, bounds.min - int(zero), bounds.max - int(zero))
    return np.asarray(np.rint(clipped) + int(zero), zero.dtype)
