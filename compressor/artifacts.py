"""Values as files a target runs: one file per target, in the dialect that is fastest there."""

import dataclasses
import functools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from ..benches.report.int8_report import Decision, Trial, describe as described_quality
from ..benches.report.words import size
from ..benches.timing import latency
from ..calibration.ranges import TensorRange
from ..core.task import Task
from ..core.values import Artifact, Interval, Session
from ..exporters.engines.engine_options import Build
from ..exporters.graph import onnx_file
from ..exporters.graph.canonical import canonicalise
from ..exporters.int8 import calibration_note
from ..exporters.sessions.ort_session import OnnxRuntimeSession
from ..exporters.targets.targets import TARGETS
from . import engines
from .data import sample_indices
from .evaluation import task_metrics
from .int8.bounds import FREE, Bounds
from .int8.closeness_judge import Judge, Promise
from .int8.int8_forms import EVEN, Form, Problem, closeness
from .int8.int8_search import Found, again, search
from .int8.runs import BATCH, VALIDATION_SAMPLES, Runs
from .int8.split_runs import from_split
from .measure_options import Measure
from .progress import Progress
from .stage import Graph

MODEL = "model.onnx"
_EARLIER = "as an earlier run chose it: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """A file for a target."""

    artifact: Artifact
    reason: str  # why it has this form, or why that was not measured
    layers: tuple[Decision, ...] = ()  # what a search decided
    ranges: tuple[TensorRange, ...] = ()  # what calibration said
    tried: tuple[Trial, ...] = ()  # the forms that were judged
    in_float: Mapping[str, str] | None = None  # node that stays in float -> why; None: nothing was searched
    taken_over: bool = False  # in the form that an earlier run had found; what was tried is what that one tried


def write(
    graph: Graph,
    target: str,
    task: Task,
    folder: Path,
    measure: Measure,
    threads: int,
    engine: Build | None = None,
    max_drop: float | None = None,
    bounds: Bounds = FREE,
    progress: Progress | None = None,
    like: Written | None = None,
) -> Written:
    """Write `graph` for `target` as `model.onnx` in `folder`.

    A quantized graph is written in the form that `int8_search` finds on this machine, or in float where no INT8 form is
    faster or good enough. Where the target's runtime is missing its first dialect is written.

    Args:
        engine: how the engines of "tensorrt" are built beside its files; None: none are.
        max_drop: most that INT8 may lose of the main metric on validation data; None: see `Promise`.
        bounds: on the forms of a quantized graph; of those that keep them the fastest is taken.
        like: what was found for the same graph here before: its form is taken, unless it is not good enough now.

    Raises:
        ExportError, QuantizationError, BuildError, MeasurementError: see the parts.
    """
    chosen = TARGETS[target]
    model = canonicalise(onnx_file.load(graph.path))

    def prepare(artifact: Artifact) -> None:
        if engine is not None and chosen.unmeasurable() is None:
            engines.build_beside(artifact, engine)  # so that timing finds it

    if graph.params is None:
        artifact = chosen.write(model, None, None, folder / MODEL)
        written = Written(artifact=artifact, reason="float: the recipe does not quantize")
    else:
        forms = folder / "forms"
        forms.mkdir()
        baseline = chosen.write(model, None, None, forms / "float.onnx")
        calibration_note.write(model, graph.calibration)
        prepare(baseline)
        judge = _judge(graph, baseline, task, Promise(metric=task_metrics(task)[0], max_drop=max_drop))
        problem = Problem(
            model=model,
            params=graph.params,
            target=chosen,
            baseline=baseline,
            judge=judge,
            feeds=latency.rotating_feeds(task.split("validation", "choosing the form"), measure.batch_sizes),
            threads=threads,
            seconds=measure.seconds,
            folder=forms,
            prepare=prepare,
            bounds=bounds,
            in_float=None if graph.trained is None else judge.quality(baseline.path),
        )
        written = _again(problem, like, graph) or _searched(problem, graph, measure.batch_sizes[0], progress)
        artifact = dataclasses.replace(written.artifact, path=folder / MODEL)
        shutil.move(written.artifact.path, artifact.path)
        shutil.rmtree(forms)
        written = dataclasses.replace(written, artifact=artifact, ranges=graph.ranges)
    if engine is not None:
        engines.build_beside(artifact, engine)
    return written


def _judge(graph: Graph, baseline: Artifact, task: Task, promise: Promise) -> Judge:
    """Holds files to the network in float; to the one that was trained in INT8, where there was one.

    Weights that were trained to be rounded need not do without: in float that network may be right nowhere.
    """
    runs, load, folder = _validation(task), TARGETS[baseline.target].stand_in, baseline.path.parent
    if graph.trained is None:
        return Judge(baseline.path, runs, promise, load, folder=folder)
    exact = functools.partial(OnnxRuntimeSession, exact=True)
    return Judge(graph.trained, runs, promise, load, folder=folder, load_original=exact)


def _searched(problem: Problem, graph: Graph, batch: int, progress: Progress | None) -> Written:
    """What a search comes to, the file where the search left it."""
    found = search(problem, graph.keep_float, progress or Progress())
    best, reason = chosen_form(found, problem)
    forms = (*found.forms, *found.tried)
    kept = next((form.keep_float for form in forms if form.artifact == best), graph.keep_float)
    tried = tuple(_trial(form, batch, form.artifact.path == best.path) for form in found.tried)
    layers = found.decisions if best != problem.baseline else tuple(_in_float(layer) for layer in found.decisions)
    return Written(artifact=best, reason=reason, layers=layers, tried=tried, in_float=dict(kept))


def _in_float(layer: Decision) -> Decision:
    """What became of a layer where no INT8 form was taken."""
    return dataclasses.replace(layer, int8=False, why=layer.why or "the whole file is in float")


def _again(problem: Problem, like: Written | None, graph: Graph) -> Written | None:
    """The form that was found before, written anew; None: there is none, or it loses too much now."""
    timed = like is not None and any(trial.latency_ms is not None for trial in like.tried)
    if like is None or like.in_float is None or (problem.target.unmeasurable() is None and not timed):
        return None  # nothing was chosen there, or not by a clock that is here now
    reason = _EARLIER + like.reason.removeprefix(_EARLIER)
    if like.artifact.dialect == problem.baseline.dialect:
        return dataclasses.replace(like, artifact=problem.baseline, reason=reason, taken_over=True)
    form = again(problem, graph.keep_float, like.artifact.dialect, like.in_float)
    if form is None:
        return None
    return dataclasses.replace(like, artifact=form.artifact, reason=reason, taken_over=True)


def chosen_form(found: Found, problem: Problem) -> tuple[Artifact, str]:
    """The file to keep, and why."""
    refused = "".join(f"; {text}" for text in found.refused)
    if found.best is None and problem.may_be_float:
        return problem.baseline, f"float: no INT8 form is good enough{refused}"
    if found.best is None:
        closest = max(found.tried, key=closeness).artifact
        said = f"{closest.dialect} is closest to what was trained"
        return closest, f"no form is good enough, nor is float; {said}{refused}"
    missing = problem.target.unmeasurable()
    if missing is not None:
        return found.best.artifact, missing
    as_it_is = {batch: Interval(value=1.0, low=1.0, high=1.0) for batch in found.best.speedup}
    took = {batch: found.best.speedup[batch].value * ms for batch, ms in found.best.milliseconds.items()}
    in_float = dataclasses.replace(
        found.best, artifact=problem.baseline, keep_float={}, quality=None, speedup=as_it_is, milliseconds=took
    )
    ranked = problem.ordered([*found.forms, in_float] if problem.may_be_float else found.forms)
    if problem.in_float is not None and not problem.may_be_float:
        refused += f"; float: {described_quality(problem.in_float)}, not good enough"
    best = ranked[0]
    listed = ", ".join(f"{_name(form)} {_speeds(form)}" for form in ranked)
    batches = f"batch size{'s' * (len(as_it_is) > 1)} {' / '.join(map(str, as_it_is))}"
    limited = problem.small_enough(best) and not problem.small_enough(ranked[-1])
    large = f" of at most {size(int(problem.bounds.max_bytes))}" if limited else ""
    forms = f"{len(ranked)} form{'s' * (len(ranked) > 1)}{large}"
    fastest = f"the fastest of {forms} (against this network in float, at {batches}: {listed})"
    return best.artifact, fastest + _why(best, ranked, problem) + refused


def _why(best: Form, ranked: Sequence[Form], problem: Problem) -> str:
    """What else than speed decided."""
    as_small = [form for form in ranked if problem.small_enough(form) == problem.small_enough(best)]
    fastest = max(as_small, key=lambda form: form.mean)
    if not problem.fast_enough(best):
        none = "none of them" if len(as_small) == len(ranked) else "none as small"
        return f"; {none} {_asked(problem.bounds)}, and this one comes nearest"
    if not problem.fast_enough(fastest):
        missed = f"{fastest.least:.2f}x of the original at its worst batch size"
        return f"; {_name(fastest)} is {missed}, and not one that {_asked(problem.bounds)}"
    if best.mean < 1 and not best.slower:
        return f"; no slower than float beyond the noise of {best.noise:.1%}, and smaller"
    if best.mean < fastest.mean and problem.as_fast(best, fastest):
        original = "float" if problem.may_be_float else "what was trained"
        return f"; the closest to {original} of those within the noise of {max(best.noise, EVEN):.1%}"
    return ""


def _asked(bounds: Bounds) -> str:
    """What a form that is fast enough does."""
    said = ["is no slower than the original" if bounds.speedup is None else f"keeps the {bounds.speedup:g}x asked for"]
    said += [f"takes at most {bounds.latency_ms:g} ms"] if bounds.latency_ms < math.inf else []
    return " and ".join(said)


def _name(form: Form) -> str:
    kept = len(form.keep_float)
    return form.artifact.dialect + (f" with {kept} layer{'s' * (kept > 1)} in float" if kept else "")


def _speeds(form: Form) -> str:
    """For each batch size."""
    return " / ".join(f"{found.value:.2f}x" for found in form.speedup.values())


def _trial(form: Form, batch: int, taken: bool) -> Trial:
    assert form.quality is not None  # what was tried was judged
    return Trial(
        dialect=form.artifact.dialect,
        in_float=len(form.keep_float),
        accuracy=form.quality.changed,
        snr_db=form.quality.snr_db,
        latency_ms=form.milliseconds.get(batch),
        taken=taken,
    )


def _validation(task: Task) -> Runs:
    split = task.split("validation", "choosing the layers")
    return from_split(split, sample_indices(split, VALIDATION_SAMPLES), BATCH, labelled=True)


def describe(written: Written) -> dict[str, Any]:
    """What was written as plain data; the path relative to its folder."""
    return {**dataclasses.asdict(written), "artifact": dataclasses.asdict(written.artifact) | {"path": MODEL}}


def described(data: Mapping[str, Any], folder: Path) -> Written:
    """The inverse of `describe`."""
    written = pydantic.TypeAdapter(Written).validate_python(dict(data))
    return dataclasses.replace(written, artifact=dataclasses.replace(written.artifact, path=folder / MODEL))


def open_session(artifact: Artifact, threads: int) -> Session:
    """The artefact in its target's runtime; where that is missing here, in what stands in for it."""
    target = TARGETS[artifact.target]
    return (target.open if target.unmeasurable() is None else target.stand_in)(artifact.path, threads)
