"""Ranges of inner tensors: the float graph runs on real samples, and histograms watch."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from ...calibration.observer import Observed, Observer
from ...core.errors import DataError
from ...core.values import Arrays
from ..graph.onnx_file import save
from .ort_session import OnnxRuntimeSession


def observe(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    tensors: Sequence[str],
    device: str = "cpu",
    unusable: dict[str, str] | None = None,
) -> dict[str, Observed]:
    """One pass over the data; memory is that of one batch and of two histograms per tensor.

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
    observers = {name: Observer() for name in tensors}
    for values in running(model, batches, tensors, device):
        _update(observers, values, unusable)
        del values  # no name holds them while the next ones come
    found = {name: observers.pop(name).observed() for name in list(observers)}
    if unusable is not None:
        unusable |= {name: "saw no values" for name, observed in found.items() if not observed.count}
    return {name: observed for name, observed in found.items() if name not in (unusable or {})}


def channel_ranges(
    model: onnx.ModelProto, batches: Iterable[Arrays], axes: Mapping[str, int], device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Smallest and largest value in each channel of inner tensors, `(2, channels)`; one pass over the data.

    A tensor that holds NaN or infinity, or no values at all, has no ranges and is left out.

    Args:
        axes: tensor -> axis of its channels, negative ones counted from the end.

    Raises:
        UsageError, MeasurementError: ONNX Runtime cannot use the device.
    """
    found: dict[str, np.ndarray] = {}
    for values in running(model, batches, tuple(axes), device):
        for name, axis in axes.items():
            value = values[name]
            if not value.size:
                continue
            others = tuple(index for index in range(value.ndim) if index != axis % value.ndim)
            ends = np.stack([value.min(others), value.max(others)])
            old = found.get(name, ends)
            found[name] = np.stack([np.minimum(old[0], ends[0]), np.maximum(old[1], ends[1])])
    return {name: ends for name, ends in found.items() if bool(np.isfinite(ends).all())}


def running(
    model: onnx.ModelProto, batches: Iterable[Arrays], tensors: Sequence[str], device: str = "cpu", name: str = ""
) -> Iterator[dict[str, np.ndarray]]:
    """Values of inputs, outputs and `tensors`, batch by batch; `name` is the file's that the model was read from."""
    inputs = {value.name for value in model.graph.input}
    with tempfile.TemporaryDirectory(prefix="edgesmith-taps-") as folder:
        path = Path(folder) / "tapped.onnx"
        save(_tapped(model, [tensor for tensor in tensors if tensor not in inputs]), path)
        session = OnnxRuntimeSession(path, device=device, name=name)
        try:
            for feed in batches:
                yield session.run(feed) | dict(feed)  # no name holds the values while the next ones come
        finally:
            session.close()


def _update(observers: dict[str, Observer], values: Arrays, unusable: dict[str, str] | None) -> None:
    for name, observer in list(observers.items()):
        try:
            observer.update(values[name])
        except DataError as error:
            if unusable is None:
                raise DataError(f"tensor '{name}': {error}") from error
            unusable[name] = str(error)
            del observers[name]


def _tapped(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    for name in tensors:
        if name not in present:
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return tapped
