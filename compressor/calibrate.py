"""Ranges for every tensor that INT8 needs one of: one streaming pass over real inputs, then a rule per tensor."""

import dataclasses
from collections.abc import Iterable, Mapping

import onnx

from ..calibration.calibrators import CALIBRATORS
from ..calibration.histogram import Histogram
from ..core.errors import QuantizationError
from ..core.tables import resolve
from ..core.values import Arrays, QuantParams
from ..exporters import placement, qdq, taps
from ..exporters.dialect import Dialect
from . import recover
from .progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """Parameters of weights and activations, and the nodes that cannot have any."""

    params: Mapping[str, QuantParams]
    keep_float: Mapping[str, str]  # node -> why it stays in float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How parameters are found."""

    calibrator: str = "mse"  # a name in `CALIBRATORS`
    per_tensor: bool = False  # one scale for a whole weight, else one for each of its output channels
    recover: tuple[str, ...] = ()  # names in `RECOVERIES`


def calibrate_and_recover(
    model: onnx.ModelProto,
    batches: recover.Batches,
    rules: Rules,
    dialect: Dialect,
    device: str,
    where: str,
    progress: Progress,
) -> tuple[onnx.ModelProto, Calibrated, list[str]]:
    """Change the weights so that INT8 costs less, as far as `rules.recover` says, and find all parameters.

    Args:
        model: a canonical float graph; not changed.
        batches: gives a fresh pass over the calibration samples.
        dialect: the rounding that recovery works against.
        where: in front of errors.

    Returns:
        The graph that is to be written, whose nodes keep their names; its parameters; what was done.

    Raises:
        RecipeError: a name in no table.
        QuantizationError: see `calibrate`.
    """
    model, folded = recover.before_ranges(rules.recover, model, batches, device, f"{where}.recover")
    found = calibrate(model, batches(), rules.calibrator, device, rules.per_tensor)
    placed = placement.place(model, found.keep_float)
    model, changed = recover.after_ranges(
        rules.recover, model, placed, found.params, dialect, batches, device, f"{where}.recover", progress
    )
    return model, found, [*folded, *changed]


def calibrate(
    model: onnx.ModelProto, batches: Iterable[Arrays], calibrator: str, device: str = "cpu", per_tensor: bool = False
) -> Calibrated:
    """Find parameters for everything that `placement.place` takes.

    A node that reads or writes a tensor of which no range can be found (infinite or NaN values, as behind an attention
    mask; nothing at all, as in a branch that never runs) stays in float.

    Args:
        model: a canonical float graph.
        batches: what it is fed.
        calibrator: a name in `CALIBRATORS`.
        device: where the graph runs.
        per_tensor: one scale for a whole weight, else one for each of its output channels.

    Raises:
        QuantizationError: no node is left that could run in INT8; says why.
    """
    rule = resolve(calibrator, CALIBRATORS, "calibrator")
    placed = placement.place(model)
    wanted = placement.tensors_to_observe(placed)
    unusable: dict[str, str] = {}
    histograms = taps.observe(model, batches, wanted, device, unusable)
    keep_float = _without(model, placed, unusable)
    placed = placement.place(model, keep_float)
    if not placed.weights:
        raise QuantizationError(_nothing(model, keep_float))
    found = {
        name: _activation(histograms[name], rule(histograms[name], 8, True), calibrator)
        for name in placement.tensors_to_observe(placed)
    }
    return Calibrated(params=qdq.weight_params(model, placed, per_tensor) | found, keep_float=keep_float)


def _activation(histogram: Histogram, wanted: tuple[float, float], calibrator: str) -> QuantParams:
    """What the calibrator wants kept, as far as there were values."""
    low, high = wanted
    return qdq.activation_params(max(low, histogram.low), min(high, histogram.high), calibrator)


def _without(model: onnx.ModelProto, placed: placement.Placement, unusable: Mapping[str, str]) -> dict[str, str]:
    """Nodes of the placement that one of these tensors keeps out of INT8."""
    kept: dict[str, str] = {}
    while True:
        bad = {name for name in placed.activations if placed.source[name] in unusable}
        if not bad:
            return kept
        readers = {
            node.name: next(name for name in [*node.input, *node.output, *_behind(model, node)] if name in bad)
            for node in model.graph.node
            if node.name in placed.nodes and bad & {*node.input, *node.output, *_behind(model, node)}
        }
        kept |= {name: f"tensor '{tensor}': {unusable[placed.source[tensor]]}" for name, tensor in readers.items()}
        placed = placement.place(model, kept)


def _behind(model: onnx.ModelProto, node: onnx.NodeProto) -> list[str]:
    """What the activation fused to a node writes."""
    return [reader.output[0] for reader in model.graph.node if reader.input and reader.input[0] in node.output]


def _nothing(model: onnx.ModelProto, keep_float: Mapping[str, str]) -> str:
    if keep_float:
        name, reason = next(iter(keep_float.items()))
        return f"nothing is left to quantize: all of {len(keep_float)} nodes stay in float; '{name}': {reason}"
    found = ", ".join(sorted({node.op_type for node in model.graph.node})[:12])
    return f"nothing to quantize: no Conv, Gemm or MatMul with constant float weights; the graph holds: {found}"
