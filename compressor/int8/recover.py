"""The table of recoveries: what gives back accuracy that INT8 took, without training and without labels."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from ...core.errors import RecipeError
from ...core.tables import resolve
from ...core.values import Arrays, QuantParams
from ...exporters.graph.graph_index import with_own_vectors
from ...exporters.int8 import stepwise
from ...exporters.int8.dialect import Dialect
from ...exporters.int8.layer import Layer, Visit
from ...exporters.int8.placement import Placement
from ...exporters.sessions import taps
from ..progress import Progress
from . import recover_equalize, recover_smooth
from .recover_bias import correct_bias
from .recover_round import round_weights

Batches = Callable[[], Iterator[Arrays]]  # a fresh pass over the calibration samples
Ranges = Mapping[str, np.ndarray]  # tensor -> (2, channels): smallest and largest value

_MEMORY = 512 << 20  # bytes of values that a walk through the network may hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folding:
    """Changes weights and not the function, so it comes before ranges are found."""

    tensors: Callable[[onnx.ModelProto], Mapping[str, int]]  # what it needs the ranges of -> axis of the channels
    rule: Callable[[onnx.ModelProto, Ranges], tuple[onnx.ModelProto, str]]  # -> the graph, what was done


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerLayer:
    """Changes one layer given what INT8 makes of its input, so it needs the ranges; layers go in the graph's order."""

    rule: Visit


# In the order they are applied in, however a recipe names them: a bias is corrected for the weights as rounded.
RECOVERIES: dict[str, Folding | PerLayer] = {
    "equalize": Folding(tensors=recover_equalize.tensors, rule=recover_equalize.equalize),
    "smooth": Folding(tensors=recover_smooth.tensors, rule=recover_smooth.smooth),
    "round": PerLayer(rule=round_weights),
    "bias-correction": PerLayer(rule=correct_bias),
}


def chosen(names: Sequence[str], where: str) -> list[Folding | PerLayer]:
    """The entries a recipe names, in the order they are applied in; those from elsewhere last.

    Raises:
        RecipeError: an unknown name, or something else than a recovery; starts with `where`.
    """
    found = {name: resolve(name, RECOVERIES, where) for name in names}
    for name, entry in found.items():
        if not isinstance(entry, Folding | PerLayer):
            kind = type(entry).__name__
            raise RecipeError(f"{where}: '{name}' is a {kind}; a recovery is a Folding or a PerLayer of recover.py")
    order = [*RECOVERIES, *names]
    return [found[name] for name in sorted(found, key=order.index)]


def before_ranges(
    names: Sequence[str], model: onnx.ModelProto, batches: Batches, device: str, where: str
) -> tuple[onnx.ModelProto, list[str]]:
    """Apply what keeps the function; the ranges found afterwards are those of the new graph.

    Returns:
        The graph, whose nodes and tensors keep their names; what was done.
    """
    notes: list[str] = []
    for entry in chosen(names, where):
        if isinstance(entry, Folding):
            model = with_own_vectors(model)
            axes = entry.tensors(model)
            ranges = taps.channel_ranges(model, batches(), axes, device) if axes else {}
            model, note = entry.rule(model, ranges)
            notes.append(note)
    return model, notes


def after_ranges(
    names: Sequence[str],
    model: onnx.ModelProto,
    placed: Placement,
    params: Mapping[str, QuantParams],
    dialect: Dialect,
    batches: Batches,
    device: str,
    where: str,
    progress: Progress | None = None,
) -> tuple[onnx.ModelProto, list[str]]:
    """Apply what works layer by layer, all of it to a layer before the next one is looked at.

    Args:
        params: of every weight and activation; they stay as they are.
        dialect: whose rounding is worked against; the others' differs little.

    Returns:
        The graph, with rounded weights on their grid, so that the writer's rounding keeps them; what was done.
    """
    rules = [entry.rule for entry in chosen(names, where) if isinstance(entry, PerLayer)]
    if not rules:
        return model, []
    done = itertools.count(1)

    def visit(layer: Layer) -> Layer:
        for rule in rules:
            layer = rule(layer)
        advance(next(done), layer.node.name)
        return layer

    with (progress or Progress()).bar(where, len(placed.weights)) as advance:
        walked = stepwise.walk(model, placed, params, dialect, batches(), visit, _MEMORY, device)
    return walked.model, [f"{next(done) - 1} layers recovered one by one on {walked.batches} batches"]
