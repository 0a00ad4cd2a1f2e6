"""Ranges of inner tensors: the float graph runs on real samples, and histograms watch."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from ..calibration.histogram import Histogram
from ..core.errors import DataError
from ..core.values import Arrays
from .onnx_file import save
from .ort_session import OnnxRuntimeSession


def observe(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    tensors: Sequence[str],
    device: str = "cpu",
    unusable: dict[str, str] | None = None,
) -> dict[str, Histogram]:
    """One pass over the data; memory is that of one batch and of one histogram per tensor.

    Args:
        model: a canonical float graph.
        batches: input name -> array `(batch, ...)`.
        tensors: names of inputs, inner tensors or outputs.
        device: where the graph runs, "cpu" or "cuda"; the histograms are on the CPU.
        unusable: gets the tensors that have no range and the reason, and they have no histogram; None: they are errors.

    Raises:
        UsageError, MeasurementError: ONNX Runtime cannot use the device.
        DataError: a tensor with NaN or infinity (see `Histogram.update`), named.
    """
    histograms = {name: Histogram() for name in tensors}
    inputs = {value.name for value in model.graph.input}
    with tempfile.TemporaryDirectory(prefix="edgesmith-taps-") as folder:
        path = Path(folder) / "tapped.onnx"
        save(_tapped(model, [name for name in tensors if name not in inputs]), path)
        session = OnnxRuntimeSession(path, device=device)
        try:
            for feed in batches:
                # No name holds the values while the next ones come.
                _update(histograms, session.run(feed) | dict(feed), unusable)
        finally:
            session.close()
    if unusable is not None:
        unusable |= {name: "saw no values" for name, histogram in histograms.items() if not histogram.count}
    return {name: histogram for name, histogram in histograms.items() if name not in (unusable or {})}


def _update(histograms: dict[str, Histogram], values: Arrays, unusable: dict[str, str] | None) -> None:
    for name, histogram in list(histograms.items()):
        try:
            histogram.update(values[name])
        except DataError as error:
            if unusable is None:
                raise DataError(f"tensor '{name}': {error}") from error
            unusable[name] = str(error)
            del histograms[name]


def _tapped(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    for name in tensors:
        if name not in present:
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return tapped
