"""Values as files a target runs: one file per target, in the dialect that is fastest there."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..benches import latency
from ..core.errors import QuantizationError
from ..core.task import Task
from ..core.values import Artifact, QuantParams, Session, TensorSpec
from ..exporters import from_torch, onnx_file
from ..exporters.canonical import canonicalise
from ..exporters.dialect import Dialect
from ..exporters.engine_options import Build
from ..exporters.ort_session import OnnxRuntimeSession
from ..exporters.targets import TARGETS, Target
from . import engines
from .candidate import Candidate
from .data import any_inputs
from .recipe import Measure
from .stage import Graph

MODEL = "model.onnx"
_EXPORTED = "exported.onnx"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write a model for a target, and how fast it was against the same network in float."""

    artifact: Artifact
    speedup: float | None = None  # at its worst batch size; None: not timed


def write(
    value: Candidate | Graph,
    target: str,
    task: Task,
    folder: Path,
    measure: Measure,
    threads: int,
    engine: Build | None = None,
) -> tuple[Artifact, str]:
    """Write `value` for `target` as `model.onnx` in `folder`.

    A quantized graph is written in every dialect the target knows and in float, each is timed here, and the fastest
    stays. Where the target's runtime is missing its first dialect is written.

    Args:
        engine: how the engines of "tensorrt" are built beside its files; None: none are.

    Returns:
        The artefact; and why it has this form, or why that was not measured.

    Raises:
        ExportError, QuantizationError, BuildError, MeasurementError: see the parts.
    """
    artifact, reason = _written(value, target, task, folder, measure, threads, engine)
    if engine is not None:
        engines.build_beside(artifact, engine)
    return artifact, reason


def _written(
    value: Candidate | Graph,
    target: str,
    task: Task,
    folder: Path,
    measure: Measure,
    threads: int,
    engine: Build | None,
) -> tuple[Artifact, str]:
    chosen = TARGETS[target]
    graph = _graph(value, task, folder)
    model = canonicalise(onnx_file.load(graph.path))
    if graph.params is None:
        (folder / _EXPORTED).unlink(missing_ok=True)
        return chosen.write(model, None, None, folder / MODEL), "float: the recipe does not quantize"
    missing = chosen.unmeasurable()
    dialects = chosen.dialects() if missing is None else chosen.dialects()[:1]
    forms, refused = _forms(chosen, model, graph.params, dialects, folder)
    if missing is not None:
        return _keep(forms[0].artifact, forms, folder), missing
    float_form = Form(artifact=chosen.write(model, None, None, folder / "float.onnx"), speedup=1.0)
    if engine is not None:
        for form in (float_form, *forms):
            engines.build_beside(form.artifact, engine)  # so that timing finds it
    timed = [float_form, *_timed(float_form, forms, task, measure, threads)]
    best = max(timed, key=lambda form: form.speedup or 0.0)
    return _keep(best.artifact, timed, folder), "; ".join((_ranking(timed), *refused))


def describe(artifact: Artifact) -> dict[str, Any]:
    """The artefact as plain data; the path relative to its folder."""
    return {**dataclasses.asdict(artifact), "path": artifact.path.name}


def described(data: Mapping[str, Any], folder: Path) -> Artifact:
    """The inverse of `describe`."""
    specs = {
        side: tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in data[side])
        for side in ("inputs", "outputs")
    }
    return Artifact(**{**data, **specs, "path": folder / data["path"]})


def open_session(artifact: Artifact, threads: int) -> Session:
    """The artefact in its target's runtime; where that is missing here, in ONNX Runtime as a stand-in."""
    target = TARGETS[artifact.target]
    return (
        target.open(artifact, threads) if target.unmeasurable() is None else OnnxRuntimeSession(artifact.path, threads)
    )


def _graph(value: Candidate | Graph, task: Task, folder: Path) -> Graph:
    if isinstance(value, Graph):
        return value
    path = folder / _EXPORTED
    from_torch.export(value.module(), any_inputs(task), task.input_specs(), task.outputs, path)
    return Graph(path=path, digest="")


def _forms(
    target: Target, model: Any, params: Mapping[str, QuantParams], dialects: Sequence[Dialect], folder: Path
) -> tuple[list[Form], list[str]]:
    forms, refused = [], []
    for dialect in dialects:
        try:
            forms.append(Form(artifact=target.write(model, params, dialect, folder / f"{dialect.name}.onnx")))
        except QuantizationError as error:
            refused.append(f"{dialect.name} refused: {error}")
    if not forms:
        raise QuantizationError(f"target '{target.name}': no INT8 file could be written: {'; '.join(refused)}")
    return forms, refused


def _timed(baseline: Form, forms: Sequence[Form], task: Task, measure: Measure, threads: int) -> list[Form]:
    inputs = any_inputs(task, max(measure.batch_sizes))
    feeds = {size: {name: array[np.arange(size)] for name, array in inputs.items()} for size in measure.batch_sizes}
    files = [baseline.artifact, *(form.artifact for form in forms)]
    results = latency.compare(files, feeds, threads, seconds=measure.seconds)
    return [
        dataclasses.replace(form, speedup=min(result.speedup[index].value for result in results))
        for index, form in enumerate(forms)
    ]


def _ranking(forms: Sequence[Form]) -> str:
    ranked = sorted(forms, key=lambda form: -(form.speedup or 0.0))
    found = ", ".join(f"{form.artifact.dialect} {form.speedup:.2f}x" for form in ranked)
    return f"the fastest of {len(ranked)} forms (against this network in float, at the worst batch size: {found})"


def _keep(artifact: Artifact, forms: Sequence[Form], folder: Path) -> Artifact:
    """Leave the chosen file alone in the folder."""
    shutil.move(artifact.path, folder / MODEL)
    for form in forms:
        for file in folder.glob(f"{form.artifact.path.stem}.*"):  # its engine too, which speaks of another name
            file.unlink()
    return dataclasses.replace(artifact, path=folder / MODEL)
