"""A file with explicit Q/DQ pairs -> canonical float graph + QuantParams: the inverse of `qdq.write_qdq`.

Quantization-aware training, other quantizers and files that arrive quantized all come back through this one function;
the same placement, writer and lint follow as after a calibration of our own.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ...core.values import QuantParams
from ..graph.canonical import canonicalise
from .placement import Placement, place, tensors_to_observe
from .qdq import weight_params
from .qdq_pair import Pair
from .qdq_pairs import Stripped, strip

# What comes out of these is what went in, but for its order or the largest of it: one set of parameters does for both.
_SAME_VALUES = (
    "Dropout", "Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_FOLDED = ("Add", "BatchNormalization", "Div", "Identity", "Mul", "Sub")  # become part of the weighted node before them
_MOVED = ("Cast", "Identity", "Reshape", "Transpose")  # may stand between a weight and the node that reads it
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_SAME = 1e-3  # relative difference of two weights that are one but for a factor per channel


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What a quantized file says, in this package's terms."""

    model: onnx.ModelProto  # canonical, float
    params: Mapping[str, QuantParams]  # of every weight that is placed, and of the activations the file speaks of
    unseen: tuple[str, ...]  # activations that have to be calibrated: placement quantizes them, the file does not
    guessed: tuple[str, ...]  # weights that the file does not quantize this way; their scale is that of their values
    unused: tuple[str, ...]  # what the file quantizes and placement leaves in float


def read_qdq(model: onnx.ModelProto, transposed: bool = False) -> Read:
    """Take the pairs out, and find what they said about each tensor that placement quantizes.

    Weights come back as floats: those of an integer weight are the numbers its integers stand for. A weight keeps its
    scale through what folding does to it (a batch norm multiplies both). Asymmetric activations keep their range;
    `scale` is then the symmetric one that covers it.

    Args:
        model: the quantized file.
        transposed: leave transposed convolutions to be calibrated too, which some target runs in INT8.

    Raises:
        QuantizationError: see `qdq_pairs.strip` and `canonicalise`.
    """
    stripped = strip(model)
    canonical = canonicalise(stripped.model)
    placed = place(canonical)
    with_transposed = place(canonical, transposed=transposed)
    observed = dict.fromkeys((*tensors_to_observe(placed), *tensors_to_observe(with_transposed)))
    activations, used = _activations(stripped, canonical, placed)
    weights, weights_used = _weights(stripped, canonical, placed)
    guessed = {name: found for name, found in weight_params(canonical, with_transposed).items() if name not in weights}
    return Read(
        model=canonical,
        params={**weights, **guessed, **activations},
        unseen=tuple(name for name in observed if name not in activations),
        guessed=tuple(guessed),
        unused=tuple(name for name in stripped.pairs if name not in used | weights_used),
    )


def _activations(
    stripped: Stripped, canonical: onnx.ModelProto, placed: Placement
) -> tuple[dict[str, QuantParams], set[str]]:
    """Parameters by tensor, and the tensors of the file they are from."""
    root = _roots((stripped.model, canonical))
    pairs: dict[str, list[Pair]] = {}
    for name, found in stripped.pairs.items():
        pairs.setdefault(root(name), []).extend(pair for pair in found if pair.axis is None)
    params, seen = {}, set()
    for name in tensors_to_observe(placed):
        candidates = pairs.get(root(name), [])
        if candidates:
            pair = max(candidates, key=lambda pair: pair.high - pair.low)  # what another reader cuts off is not lost
            params[name] = _activation(pair, name, placed, stripped.activations)
            seen.add(root(name))
    return params, {name for name in stripped.pairs if root(name) in seen}


def _activation(pair: Pair, name: str, placed: Placement, written_as: str | None) -> QuantParams:
    scale, zero, low, high = float(pair.scale), int(pair.zero), pair.low, pair.high
    middle, lowest = (0, -128) if pair.dtype == "int8" else (128, 0)
    symmetric = zero == middle and written_as not in ("u8-asymmetric", "s8-asymmetric")  # there it is chance
    top = placed.upper.get(name)
    if (
        written_as in ("u8", "s8-shifted") and zero == lowest
    ):  # the scale of S8, but where a Clip had to go: see `Dialect`
        symmetric = top is None or high < top * (1 - 1e-5)
    if symmetric:
        low, high = -127 * scale, 127 * scale
    else:
        scale = max(abs(low), abs(high)) / 127
    return QuantParams(
        low=max(low, 0.0) if name in placed.never_negative else low,
        high=high,
        scale=np.float32(scale),  # type: ignore[arg-type]  # 0-d
        origin=f"Q/DQ in the file: {pair.dtype}, scale {float(pair.scale):.6g}, zero point {zero}",
    )


def _roots(models: Sequence[onnx.ModelProto]) -> Callable[[str], str]:
    """Tensor -> one name for all that carry the same values, in any of the graphs."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while name in parents:
            name = parents[name]
        return name

    for model in models:
        for node in model.graph.node:
            if node.op_type in _SAME_VALUES and root(node.input[0]) != root(node.output[0]):
                parents[root(node.output[0])] = root(node.input[0])
    return root


def _weights(
    stripped: Stripped, canonical: onnx.ModelProto, placed: Placement
) -> tuple[dict[str, QuantParams], set[str]]:
    """Parameters by weight, and the weights of the file they are from."""
    before = _arrays(stripped.model)
    after = _arrays(canonical)
    makers = {name: node for node in stripped.model.graph.node for name in node.output}
    params: dict[str, QuantParams] = {}
    used: set[str] = set()
    for node in canonical.graph.node:
        name = node.input[1] if node.op_type in _WEIGHTED else ""
        if name not in placed.weights or name in params:
            continue
        for source in _sources(node, makers):
            values = before.get(source, after.get(source))  # after, where what stood before it was folded
            if source not in stripped.pairs or values is None:
                continue
            found = _weight(stripped.pairs[source][0], values, after[name], placed.weights[name])
            if found is not None:
                params[name] = found
                used.add(source)
                break
    return params, used


def _arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def _sources(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """Names under which the file may speak of the weight of a canonical node, the likeliest first."""
    yield node.input[1]
    maker = makers.get(node.output[0])
    while maker is not None and maker.op_type in _FOLDED:
        maker = next((makers[name] for name in maker.input if name in makers), None)
    name = maker.input[1] if maker is not None and maker.op_type in _WEIGHTED else ""
    while name:
        yield name
        mover = makers.get(name)
        name = mover.input[0] if mover is not None and mover.op_type in _MOVED else ""


def _weight(pair: Pair, before: np.ndarray, after: np.ndarray, axis: int) -> QuantParams | None:
    """A weight's parameters after folding; None where they cannot be symmetric ones per output channel."""
    if pair.zero.any() or pair.dtype != "int8":
        return None
    layouts = [(before, pair.axis)]
    if before.ndim == 2:  # `Gemm` and `MatMul` read it either way round
        layouts.append((before.T, None if pair.axis is None else 1 - pair.axis))
    for values, along in layouts:
        same = values.shape == after.shape and along in (None, axis)
        factors = _factors(values, after, axis) if same else None
        if factors is not None:
            scale = np.broadcast_to(pair.scale, factors.shape)
            shape = [-1 if index == axis else 1 for index in range(values.ndim)]
            most = float(np.abs(np.rint(values / scale.reshape(shape))).max(initial=0.0))
            bound = float(np.abs(after).max(initial=0.0))
            return QuantParams(
                low=-bound,
                high=bound,
                scale=(scale * factors).astype(np.float32),
                axis=axis,
                bits=7 if most <= 63 else 8,
                origin="Q/DQ in the file",
            )
    return None


def _factors(before: np.ndarray, after: np.ndarray, axis: int) -> np.ndarray | None:
    """What each output channel was multiplied by; None where the two are not one weight."""
    others = tuple(index for index in range(before.ndim) if index != axis)
    old, new = np.abs(before).max(others, initial=0.0), np.abs(after).max(others, initial=0.0)
    factors = np.where(old > 0, new / np.where(old > 0, old, 1.0), 1.0).astype(np.float64)
    factors = np.where(factors > 0, factors, 1.0)
    shape = [-1 if index == axis else 1 for index in range(before.ndim)]
    difference = np.abs(np.abs(before) * factors.reshape(shape) - np.abs(after)).max(others, initial=0.0)
    # A batch norm may switch a channel off: then nothing is left to compare.
    return factors if bool((difference <= _SAME * new)[new > 0].all()) else None
