"""Ranges for every tensor that INT8 needs one of: one streaming pass over real inputs, then a rule per tensor."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from ...calibration import ranges
from ...calibration.calibrators import CALIBRATORS, Calibrator, Grids, auto, choose
from ...calibration.grid import Grid, grid_of
from ...calibration.observer import Observed
from ...core.errors import QuantizationError
from ...core.tables import resolve
from ...core.values import Arrays
from ...exporters.int8 import placement, qdq
from ...exporters.int8.dialect import Dialect
from ...exporters.sessions import taps
from ..progress import Progress
from . import recover
from .calibration_cache import Cache, Calibrated

_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How parameters are found."""

    calibrator: str = "mse"  # a name in `CALIBRATORS`
    per_tensor: bool = False  # one scale for a whole weight, else one for each of its output channels
    recover: tuple[str, ...] = ()  # names in `RECOVERIES`
    transposed: bool = False  # find parameters for transposed convolutions too, which some target runs in INT8


def calibrate_and_recover(
    model: onnx.ModelProto,
    batches: recover.Batches,
    rules: Rules,
    dialects: Sequence[Dialect],
    device: str,
    where: str,
    progress: Progress,
    cache: Cache | None = None,
) -> tuple[onnx.ModelProto, Calibrated, list[str]]:
    """Change the weights so that INT8 costs less, as far as `rules.recover` says, and find all parameters.

    Args:
        model: a canonical float graph; not changed.
        batches: gives a fresh pass over the calibration samples.
        dialects: that the file may be written in; recovery works against the rounding of the first.
        where: in front of errors.
        cache: of what calibrations found; None: this one is made anew, and not kept.

    Returns:
        The graph that is to be written, whose nodes keep their names; its parameters; what was done.

    Raises:
        RecipeError: a name in no table.
        QuantizationError: see `calibrate`.
    """
    model, folded = recover.before_ranges(rules.recover, model, batches, device, f"{where}.recover")

    def make() -> Calibrated:
        return calibrate(model, batches(), rules.calibrator, device, rules.per_tensor, dialects, rules.transposed)

    settings = {
        "calibrator": rules.calibrator,
        "per_tensor": rules.per_tensor,
        "transposed": rules.transposed,
        "device": device,
        "dialects": [dataclasses.asdict(dialect) for dialect in dialects],
    }
    # The name of a calibrator from elsewhere does not say what it does.
    found = make() if cache is None or rules.calibrator not in CALIBRATORS else cache.once(model, settings, make)
    placed = placement.place(model, found.keep_float)
    model, changed = recover.after_ranges(
        rules.recover, model, placed, found.params, dialects[0], batches, device, f"{where}.recover", progress
    )
    return model, found, [*folded, *changed]


def calibrate(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    calibrator: str,
    device: str = "cpu",
    per_tensor: bool = False,
    dialects: Sequence[Dialect] = (),
    transposed: bool = False,
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
        dialects: that the file may be written in, which `auto` judges by; none: by the symmetric grid they all share.
        transposed: find parameters for transposed convolutions too; files that leave them in float need no others.

    Raises:
        QuantizationError: no node is left that could run in INT8; says why.
    """
    rule = resolve(calibrator, CALIBRATORS, "calibrator")
    kinds = sorted({False, transposed})
    wanted = _observed([placement.place(model, (), kind) for kind in kinds])
    unusable: dict[str, str] = {}
    seen = taps.observe(model, batches, wanted, device, unusable)
    keep_float: dict[str, str] = {}
    for kind in kinds:
        keep_float |= _without(model, keep_float, unusable, kind)
    both = [placement.place(model, keep_float, kind) for kind in kinds]
    placed = both[-1]
    if not placed.weights:
        raise QuantizationError(_nothing(model, keep_float))
    found = [
        _activation(name, seen[name], calibrator, rule, _grids(name, placed, dialects)) for name in _observed(both)
    ]
    activations = {each.tensor: qdq.activation_params(each.low, each.high, each.rule) for each in found}
    weights = {name: each for found in both for name, each in qdq.weight_params(model, found, per_tensor).items()}
    params = weights | activations
    return Calibrated(params=params, keep_float=keep_float, ranges=tuple(found))


def _activation(tensor: str, seen: Observed, calibrator: str, rule: Calibrator, grids: Grids) -> ranges.TensorRange:
    """What the calibrator wants kept, as far as there were values."""
    if rule is auto:
        calibrator, _ = choose(seen, 8, True, grids)
        rule = CALIBRATORS[calibrator]
    halves = None if seen.halves is None else [_ends(half, rule) for half in seen.halves]
    return ranges.describe(tensor, calibrator, seen, _ends(seen, rule), halves)


def _ends(seen: Observed, rule: Calibrator) -> ranges.Ends:
    low, high = rule(seen, 8, True)
    return max(low, seen.low), min(high, seen.high)


def _grids(name: str, placed: placement.Placement, dialects: Sequence[Dialect]) -> Grids:
    """The grids that the writer would give a range of this tensor."""

    def grid(low: float, high: float, dialect: Dialect) -> Grid:
        scale, zero = qdq.activation_grid(qdq.activation_params(low, high, ""), name, placed, dialect)
        levels = np.iinfo(zero.dtype)
        return Grid(float(scale), levels.min - int(zero), levels.max - int(zero))

    return lambda low, high: [grid(low, high, dialect) for dialect in dialects] or [grid_of(low, high, 8, True)]


def _observed(placements: Sequence[placement.Placement]) -> tuple[str, ...]:
    """What any of them needs the range of."""
    return tuple(dict.fromkeys(name for each in placements for name in placement.tensors_to_observe(each)))


def _without(
    model: onnx.ModelProto, keep_float: Mapping[str, str], unusable: Mapping[str, str], transposed: bool
) -> dict[str, str]:
    """Nodes that one of these tensors keeps out of INT8, and those that stay out in any case."""
    kept = dict(keep_float)
    while True:
        placed = placement.place(model, kept, transposed)
        bad = {name for name in placed.activations if placed.source[name] in unusable}
        if not bad:
            return kept
        readers = {
            node.name: next(name for name in [*node.input, *node.output, *_behind(model, node)] if name in bad)
            for node in model.graph.node
            if node.name in placed.nodes and bad & {*node.input, *node.output, *_behind(model, node)}
        }
        kept |= {name: f"tensor '{tensor}': {unusable[placed.source[tensor]]}" for name, tensor in readers.items()}


def _behind(model: onnx.ModelProto, node: onnx.NodeProto) -> list[str]:
    """What the activation fused to a node writes; any other operator may make what it likes of the node's output."""
    readers = (reader for reader in model.graph.node if reader.op_type in placement.FUSED)
    return [reader.output[0] for reader in readers if reader.input[0] in node.output]


def _nothing(model: onnx.ModelProto, keep_float: Mapping[str, str]) -> str:
    if keep_float:
        name, reason = next(iter(keep_float.items()))
        return f"nothing is left to quantize: all of {len(keep_float)} nodes stay in float; '{name}': {reason}"
    found = ", ".join(sorted({node.op_type for node in model.graph.node})[:12]) or "nothing"
    types = _other_types(model)
    remedy = f"; it has weights in {', '.join(types)}: convert the model to float32 first" if types else ""
    return f"nothing to quantize: no Conv, Gemm or MatMul with constant float weights; the graph holds: {found}{remedy}"


def _other_types(model: onnx.ModelProto) -> list[str]:
    """In which other float types constants are that Convs, Gemms and MatMuls read."""
    read = {name for node in model.graph.node if node.op_type in placement.WEIGHTED for name in node.input}
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.name in read}
    return sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds if kind in _OTHER_FLOATS)
