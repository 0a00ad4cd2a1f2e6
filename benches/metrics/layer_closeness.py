"""Where a changed file departs from its original: the result of every layer in both, on the same inputs."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from ...core.errors import ArtifactError
from ...core.values import Arrays
from ...exporters.graph import onnx_file
from ...exporters.sessions import taps
from . import closeness

# What has a result worth looking at; the others move values, or are part of these.
_LAYERS = (
    "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Gelu", "Gemm", "GlobalAveragePool",
    "LayerNormalization", "MatMul", "Mul", "Softmax",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCloseness:
    """One layer's result, with the errors of all layers before it."""

    layer: str
    operator: str  # in the original
    tensor: str
    snr_db: float  # see `closeness.Closeness.snr_db`


def layer_closeness(original: Path, changed: Path, feeds: Sequence[Arrays]) -> tuple[LayerCloseness, ...]:
    """Signal-to-noise ratio of every layer whose result both files know by the same name, the worst first.

    Args:
        original: a float file.
        changed: made from it, for example its INT8 form.
        feeds: what both run on; only one run's tensors are held at a time.

    Raises:
        ArtifactError: a file cannot be read or loaded, or they have no layer in common.
        DataError: the feeds do not fit one of them.
    """
    before, after = onnx_file.load(original), onnx_file.load(changed)
    layers = {node.output[0]: node for node in before.graph.node if node.op_type in _LAYERS}
    made = {name for node in after.graph.node for name in node.output}
    shared = [name for name in _floats(before, layers) if name in made]
    if not shared:
        raise ArtifactError(f"{changed}: no layer's result has a name that {original} has too; was it made from it?")

    def run(model: onnx.ModelProto, path: Path) -> Iterator[Arrays]:
        running = taps.running(model, feeds, shared, name=str(path))
        return ({name: values[name] for name in shared} for values in running)

    found = closeness.compare(run(before, original), run(after, changed))
    result = [
        LayerCloseness(
            layer=layers[each.output].name or each.output,
            operator=layers[each.output].op_type,
            tensor=each.output,
            snr_db=each.snr_db,
        )
        for each in found
        if each.snr_db is not None
    ]
    return tuple(sorted(result, key=lambda each: each.snr_db))


def _floats(model: onnx.ModelProto, names: Iterable[str]) -> list[str]:
    """Those of the names that are float tensors, in the graph's order."""
    known = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in [*known.value_info, *known.output]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    return [name for name in names if name in floats]
