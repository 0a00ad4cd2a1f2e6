"""`edgesmith quantize MODEL.onnx`: any float ONNX file in; an INT8 file that is close and faster, or a reasoned no."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx

from ...benches.metrics.metrics import of_fitting_output
from ...benches.report.inspection import dialect_of
from ...benches.report.int8_report import Quantized, describe
from ...benches.timing import intervals, latency
from ...calibration.calibrators import CALIBRATORS
from ...calibration.ranges import warnings
from ...core import digest
from ...core.errors import ArtifactError, DataError, QuantizationError, UsageError
from ...core.files import storage_errors
from ...core.tables import resolve
from ...exporters.graph import onnx_file
from ...exporters.graph.artifact_file import describe_file
from ...exporters.graph.canonical import canonicalise
from ...exporters.int8 import calibration_note, dynamic, placement
from ...exporters.targets.targets import TARGETS
from ..progress import Progress
from . import recover, runs
from .calibrate import Rules, calibrate_and_recover
from .calibration_cache import Cache, Calibrated
from .closeness_judge import Judge, Promise, run
from .int8_forms import Form, Problem
from .int8_search import Found, search
from .runs import RunData
from .streamed_scores import joined
from .task_runs import from_task

_RECOVERY = ("equalize", "smooth", "bias-correction")  # seconds; learned rounding is asked for by name
_RESTARTS = 5  # of the verdict's measurement
_ROTATE = 4  # feeds that take turns while a file is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for."""

    target: str = "onnxruntime-cpu"
    calibrator: str = "mse"
    max_drop: float | None = None
    recover: tuple[str, ...] = ()  # names in `RECOVERIES`; none: those that take seconds, where layers lose too much
    threads: int = 1
    batch: int | None = None  # rows of a timed run; None: as each run of the data is
    seconds: float = 5.0  # timed for the verdict; while choosing a fifth of it
    device: Literal["cpu", "cuda"] = "cpu"
    confidence: float = 0.95  # up to 0.96875, which is what the verdict's restarts can give
    cache: Path | None = None  # folder of earlier calibrations; None: ranges are found anew, and not kept


def quantize_file(model: Path, data: Path, out: Path, options: Options, progress: Progress | None = None) -> Quantized:
    """Quantize a file.

    Args:
        model: float ONNX file.
        data: .npz or folder (see `runs.from_file`), or a task file, "task.py" or "task.py:function".
        out: where the INT8 file goes, complete or absent.
        options: see there.

    Raises:
        ArtifactError: not a float ONNX file; one that is quantized already.
        DataError, TaskError, RecipeError, UsageError: data or options that cannot be used.
    """
    progress = progress or Progress()
    resolve(options.target, TARGETS, "--target")
    resolve(options.calibrator, CALIBRATORS, "--calibrator")
    recover.chosen(options.recover, "--recover")
    _check_confidence(options.confidence)
    _check_out(out, model)
    loaded = onnx_file.load(model)
    written_as = dialect_of(loaded)
    if written_as != "float":
        raise ArtifactError(f"{model}: is quantized already ({written_as}); give the float model it was made from")
    inputs, outputs = onnx_file.specs(loaded)
    no_task = data.is_dir() or data.suffix == ".npz"
    found = runs.from_file(data, inputs) if no_task else from_task(data, inputs)
    if no_task:
        runs.refuse_one_hot(data, found, outputs)
    base = _nothing(model, found, options)
    with tempfile.TemporaryDirectory(prefix="edgesmith-quantize-") as folder, storage_errors(Path(folder)):
        try:
            graph = canonicalise(loaded)
            found = _of_fitting_output(found, model, loaded) if no_task else found
            promise = Promise(metric=found.metric, max_drop=options.max_drop)
            attempt, result = _searched(model, graph, found, promise, options, Path(folder), progress)
        except QuantizationError as error:
            return dataclasses.replace(base, reason=str(error))
        base = dataclasses.replace(
            base, notes=(*_said_of(found, no_task), *attempt.notes), ranges=attempt.calibrated.ranges
        )
        outcome = _judged(base, result, attempt.problem, found, promise, options)
        if outcome.status != "refused" and result.best is not None:
            with storage_errors(out.parent):
                _write(result.best.artifact.path, out, found, options)
                outcome = dataclasses.replace(outcome, out=str(out), final_bytes=out.stat().st_size)
        return outcome


def _of_fitting_output(data: RunData, path: Path, model: onnx.ModelProto) -> RunData:
    """Labels of a file say no output's name: they are held to the one that they fit."""
    chosen_on = (data.validation, data.test)  # all labels, as a class that one part lacks may not fit
    labels = [part.labels for part in chosen_on if part.labels is not None]
    if data.metric is None or not labels or len(model.graph.output) == 1:
        return data
    found = list(run(path, [feed for part in chosen_on for feed in part.feeds]))
    outputs = {}
    for name in found[0]:
        with contextlib.suppress(DataError):  # no rows of one shape in all runs, so no labels for them
            outputs[name] = joined(found, name)
    return dataclasses.replace(data, metric=of_fitting_output(data.metric, outputs, np.concatenate(labels)))


def _said_of(data: RunData, chosen: bool) -> tuple[str, ...]:
    """Which output labels are held to, where it was chosen here."""
    if not chosen or data.metric is None or data.metric.output is None:
        return ()
    return (f"the labels are held to output '{data.metric.output}', the one they fit best",)


def _check_confidence(confidence: float) -> None:
    """Refuse what the restarts of the verdict cannot give, as a recipe does, in place of giving less."""
    most = 1 - 2.0**-_RESTARTS  # see `intervals.enough_restarts`
    if not 0.5 <= confidence <= most:
        raise UsageError(
            f"confidence {confidence:g}: the {_RESTARTS} restarts of the verdict give an interval at 0.5 to {most:g}"
        )


def _check_out(out: Path, model: Path) -> None:
    """Refuse before any work what could not be written after it, or would be written over what the work is made of."""
    if out.resolve() == model.resolve():
        raise UsageError(f"--out {out}: is the original itself; give another name")
    if out.suffix != ".onnx" or out.is_dir():
        raise UsageError(f"--out {out}: is no name for an ONNX file; give one that ends in .onnx")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"--out {out}: {above} is no folder; give another name")


def _write(chosen: Path, out: Path, data: RunData, options: Options) -> None:
    """The chosen file with a note of what its ranges come from, complete or absent."""
    model = onnx_file.load(chosen)
    calibration_note.write(model, _data_digest(data), runs=len(data.calibration), calibrator=options.calibrator)
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx_file.save(model, out)


def _data_digest(data: RunData) -> str:
    """Of the runs that ranges come from, in their order."""
    return digest.of_json([digest.of_arrays(feed) for feed in data.calibration.feeds])


class _Attempt(NamedTuple):
    """One calibration, with or without recovery, and what is searched with it."""

    problem: Problem
    calibrated: Calibrated
    notes: tuple[str, ...]


def _searched(
    original: Path,
    graph: onnx.ModelProto,
    data: RunData,
    promise: Promise,
    options: Options,
    folder: Path,
    progress: Progress,
) -> tuple[_Attempt, Found]:
    """The search; where all layers lose too much it tries recovered weights, and only then gives layers back."""
    target = TARGETS[options.target]
    judge = Judge(original, data.validation, promise, target.stand_in, options.confidence, folder)
    feeds = runs.batched(data.validation.feeds, onnx_file.specs(graph)[0], options.batch, _ROTATE)

    said: list[str] = []
    cache = None if options.cache is None else Cache(options.cache, _data_digest(data), said.append)

    def prepared(names: tuple[str, ...], place: Path) -> _Attempt:
        place.mkdir()
        said.clear()
        progress.say(f"calibrating with {len(data.calibration)} runs" + (f", {', '.join(names)}" if names else ""))
        model, calibrated, notes = calibrate_and_recover(
            graph,
            lambda: iter(data.calibration.feeds),
            Rules(calibrator=options.calibrator, recover=names, transposed=target.transposed),
            target.dialects(),
            options.device,
            "--",
            progress,
            cache,
        )
        problem = Problem(
            model=model,
            params=calibrated.params,
            target=target,
            baseline=describe_file(original, options.target),
            judge=judge,
            feeds=feeds,
            threads=options.threads,
            seconds=options.seconds / 5,
            folder=place,
        )
        for note in said:
            progress.say(f"  {note}")
        return _Attempt(problem, calibrated, (*notes, *said, *warnings(calibrated.ranges)))

    tried = []
    for number, names in enumerate([options.recover] if options.recover else [(), _recoveries(graph)]):
        attempt = prepared(names, folder / str(number))
        found = search(attempt.problem, attempt.calibrated.keep_float, progress, give_back=False)
        if found.best is not None:
            return attempt, found
        tried.append(attempt)
    searched = [(each, search(each.problem, each.calibrated.keep_float, progress)) for each in tried]
    return max(searched, key=lambda each: _worth(each[1]))


def _recoveries(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Those that take seconds; biases of products with ranges found at run time are not those that calibration sees."""
    return ("smooth",) if dynamic.leads(graph, placement.place(graph)) else _RECOVERY


def _worth(found: Found) -> tuple[bool, float, int]:
    """What makes one search better than another: a form at all, then speed, then layers in INT8."""
    best = found.best
    return best is not None, 0.0 if best is None else best.mean, 0 if best is None else -len(best.keep_float)


def _nothing(model: Path, data: RunData, options: Options) -> Quantized:
    """The outcome before anything was tried."""
    return Quantized(
        model=str(model),
        target=options.target,
        status="refused",
        reason="",
        out=None,
        dialect="float",
        metric=None if data.metric is None else data.metric.name,
        quality=None,
        speedup=None,
        original_ms=None,
        final_ms=None,
        original_bytes=model.stat().st_size,
        final_bytes=None,
        runs={name: len(getattr(data, name)) for name in ("calibration", "validation", "test")},
    )


def _judged(
    base: Quantized, found: Found, problem: Problem, data: RunData, promise: Promise, options: Options
) -> Quantized:
    """Judge the form that was chosen on runs that nothing was chosen with."""
    tried = tuple(_tried(form) for form in found.forms) + found.refused
    base = dataclasses.replace(base, decisions=found.decisions, tried=tried)
    if found.best is None:
        return dataclasses.replace(base, reason=f"no INT8 form is close enough: {'; '.join(found.refused)}")
    judge = Judge(Path(base.model), data.test, promise, problem.target.stand_in, options.confidence, problem.folder)
    quality = judge.quality(found.best.artifact.path)
    base = dataclasses.replace(base, quality=quality, dialect=found.best.artifact.dialect)
    if not judge.keeps(quality):
        reason = f"what was good enough on the runs it was chosen with is not on others: {describe(quality)}"
        return dataclasses.replace(base, reason=reason)
    base = dataclasses.replace(base, final_bytes=found.best.artifact.file_bytes)
    missing = problem.target.unmeasurable()
    if missing is not None:
        return dataclasses.replace(base, status="unproven", reason=f"latency not measured: {missing}")
    return _timed(base, found.best, problem, judge.proves(quality), options)


def _timed(base: Quantized, best: Form, problem: Problem, proven: bool, options: Options) -> Quantized:
    """The verdict on speed: a measurement of its own, and a longer one where that cannot tell which is faster."""
    for look, (restarts, confidence) in enumerate(intervals.looks(_RESTARTS, options.confidence)):
        (paired,) = latency.compare(
            [problem.baseline, best.artifact],
            problem.feeds,
            options.threads,
            restarts=restarts,
            seconds=options.seconds * restarts / _RESTARTS,
            seed=1 + look,
            confidence=confidence,
        )
        speedup = paired.speedup[0]
        if speedup.low > 1 or speedup.high < 1:
            break
    base = dataclasses.replace(base, speedup=speedup, original_ms=paired.latency[0].p50, final_ms=paired.latency[1].p50)
    measured = f"{speedup.value:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})"
    if speedup.high < 1:
        return dataclasses.replace(base, final_bytes=None, reason=f"slower than the original: {measured}")
    if speedup.low <= 1:
        reason = f"not proven to be faster than the original: {measured}, noise floor {100 * paired.noise_floor:.1f} %"
        return dataclasses.replace(base, final_bytes=None, reason=reason)
    if options.max_drop is not None and not proven:
        reason = f"--max-drop {options.max_drop:g}: {_unproven(base)}"
        return dataclasses.replace(base, status="unproven", reason=reason)
    return dataclasses.replace(base, status="written")


def _unproven(base: Quantized) -> str:
    drop = None if base.quality is None else base.quality.drop
    assert drop is not None  # a limit on it was asked for
    return f"kept by the estimate, {drop.value:.4f}, but not by its bound, {drop.high:.4f}; more runs would tell"


def _tried(form: Form) -> str:
    parts = [f"{form.mean:.2f}x"] if form.speedup else []
    parts += [] if form.quality is None else [describe(form.quality)]
    parts += [f"{len(form.keep_float)} layers in float"] if form.keep_float else []
    return f"{form.artifact.dialect}: {', '.join(parts)}"
