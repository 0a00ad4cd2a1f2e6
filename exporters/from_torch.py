"""A torch module to an ONNX file with a dynamic batch axis and others, checked against torch before it is believed."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import ArtifactError, DataError, ExportError, MeasurementError
from ..core.files import atomic_path
from ..core.values import Arrays, TensorSpec
from .graph import onnx_file
from .graph.added_zeros import drop_added_zeros
from .graph.canonical import strip_notes
from .sessions.ort_session import OnnxRuntimeSession
from .sessions.torch_session import TorchSession, forward, to_tensors

CHECKED_BATCHES = (1, 2, 5)
_ATOL, _RTOL = 1e-4, 1e-3  # of the output's largest value; ONNX Runtime fuses and reorders sums


def export(
    module: nn.Module, samples: Arrays, inputs: tuple[TensorSpec, ...], outputs: Sequence[str], path: Path
) -> None:
    """Export with torch's dynamo exporter and prove the file computes the same.

    Args:
        module: on the CPU; put in eval mode.
        samples: real inputs by name, at least `sum(CHECKED_BATCHES)` samples on axis 0; used for tracing and checking.
        path: where the file goes; it appears only once it has passed the check.

    Raises:
        ExportError: torch cannot export the model, or the file's outputs differ; names the output and the difference.
    """
    module = module.cpu().eval()
    example = {spec.name: samples[spec.name][:2] for spec in inputs}
    with atomic_path(path) as partial:
        write(module, example, inputs, outputs, partial)
        try:
            _tidy(partial)
            check(module, samples, inputs, outputs, partial)
        except (ArtifactError, DataError, MeasurementError) as error:  # of a file that never gets its name
            cause = str(error).removeprefix(f"{partial}: ")
            raise ExportError(f"the exported file cannot be used: {cause}") from error


def write(
    module: nn.Module, example: Arrays, inputs: tuple[TensorSpec, ...], outputs: Sequence[str], path: Path
) -> None:
    """Export, dynamic in every axis that `inputs` names, whatever the file computes: `check` tells.

    Raises:
        ExportError: torch cannot export the module.
    """
    arguments = tuple(to_tensors(example, "cpu").values())
    dims = {name: torch.export.Dim(name) for spec in inputs for name in spec.shape if isinstance(name, str)}
    dynamic = tuple({i: dims[n] for i, n in enumerate(spec.shape) if isinstance(n, str)} for spec in inputs)
    wrapped = Positional(module, [spec.name for spec in inputs], outputs)
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                arguments,
                input_names=[spec.name for spec in inputs],
                output_names=list(outputs),
                dynamic_shapes=(dynamic,),
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # dynamo's
            _give_way(program.model.graph)
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter raises many kinds, all of which mean the same to the user
        raise ExportError(f"the model cannot be exported to ONNX: {cause_of(error)}") from error


def _give_way(graph: Any) -> None:
    """Rename values inside, which are called as their operators are ("embedding"), where a task has the name."""
    public = {value.name for value in (*graph.inputs, *graph.outputs)}
    outside = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in public and id(value) not in outside:
                value.name = f"inside.{value.name}"


def cause_of(error: BaseException) -> str:
    """The first line of the error that started it, and what to do about that."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line for line in str(error).splitlines() if line.strip()), "").strip()[:300]
    if "data-dependent" in str(error) or "data-dependent" in type(error).__name__.lower():
        remedy = "replace data-dependent control flow in forward() with tensor operations"
    else:
        line, remedy = f"{type(error).__name__}: {line}", "write that part with operations the exporter knows"
    return f"{line}; {remedy}, or start from an ONNX file"


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Drop what a vendor says on the way: it is about its own internals, or comes again in what it raises."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in loggers or ("torch",)}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _tidy(path: Path) -> None:
    model = onnx_file.load(path)
    strip_notes(model)
    drop_added_zeros(model)
    onnx_file.save(model, path)


class Positional(nn.Module):
    """Gives the exporter a forward that returns a plain tuple in the task's order."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = forward(self.module, dict(zip(self._inputs, tensors, strict=True)), self._outputs)
        return tuple(results[name] for name in self._outputs)


def check(
    module: nn.Module, samples: Arrays, inputs: tuple[TensorSpec, ...], outputs: Sequence[str], path: Path
) -> None:
    """Compare a file with the module it comes from, on real samples and at several batch sizes.

    Raises:
        ExportError: a fixed batch size, or outputs that differ; names the output and the difference.
    """
    torch_session = TorchSession(module, inputs, outputs)
    onnx_session = OnnxRuntimeSession(path)
    try:
        for spec, wanted in zip(onnx_session.inputs, inputs, strict=True):
            if isinstance(spec.shape[0], int):
                raise ExportError(
                    f"the exported file takes batches of {spec.shape[0]} only: forward() fixes the batch size of input "
                    f"'{spec.name}', as a reshape to a number does; write x.shape[0] or -1 there"
                )
            for axis, (size, name) in enumerate(zip(spec.shape, wanted.shape, strict=True)):
                if isinstance(size, int) and isinstance(name, str):
                    raise ExportError(
                        f"the exported file takes a {name} of {size} only: forward() fixes axis {axis} of input "
                        f"'{spec.name}', as a reshape to a number does; write x.shape[{axis}] or -1 there"
                    )
        for feed in (*_feeds(samples), *_shorter(samples, inputs)):
            expected, actual = torch_session.run(feed), onnx_session.run(feed)
            for name in outputs:
                _compare(name, expected[name], actual[name])
    finally:
        onnx_session.close()


def _feeds(samples: Arrays) -> Iterator[dict[str, np.ndarray]]:
    start = 0
    total = len(next(iter(samples.values())))
    for size in CHECKED_BATCHES:
        indices = (start + np.arange(size)) % total
        yield {name: array[indices] for name, array in samples.items()}
        start += size


def _shorter(samples: Arrays, inputs: tuple[TensorSpec, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Two samples, cut to half along the dynamic axes beside the batch, if there are any; all at least one long."""
    cuts = {
        spec.name: tuple(
            slice(0, max(1, size // 2)) if isinstance(axis, str) else slice(None)
            for size, axis in zip(samples[spec.name].shape[1:], spec.shape[1:], strict=True)
        )
        for spec in inputs
    }
    if any(isinstance(axis, str) for spec in inputs for axis in spec.shape[1:]):
        yield {name: samples[name][(slice(0, 2), *cut)] for name, cut in cuts.items()}


def _compare(name: str, expected: np.ndarray, actual: np.ndarray) -> None:
    if expected.shape != actual.shape:
        raise ExportError(f"output '{name}': torch gives shape {expected.shape}, the exported file {actual.shape}")
    if not np.isfinite(expected).all():
        raise ExportError(
            f"output '{name}': torch itself gives NaN or infinity on the task's data; nothing can be compared"
        )
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    allowed = _ATOL * scale + _RTOL * np.abs(expected)
    if bool((difference > allowed).any()) or not np.isfinite(actual).all():
        raise ExportError(
            f"output '{name}': the exported file differs from torch by up to {float(difference.max()):.3g} "
            f"(batch of {len(expected)}, allowed {_ATOL * scale:.1g}); the exporter has changed what the model computes"
        )
