"""Measures a bundle where it was unpacked; `run.py` calls it once the bundle is verified. Needs numpy and the runtime.

Of every target's file: outputs on the bundled samples in a process of its own, held against the reference outputs and
the labels; then its paired latency against the original in the same runtime, by the method of `latency.compare`. What
is finished stays under `work/` and is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ...core import digest
from ...core.errors import EdgesmithError, ExitCode, MeasurementError, UsageError
from ...core.files import storage_errors, write_atomic
from ...core.task import ArraySplit, Metric
from ...exporters.engines import cuda_driver
from ...exporters.sessions.cpu import this_cpu
from ..metrics import accuracy, metrics
from ..timing import child, environment, latency
from ..timing.contender import Contender
from ..timing.timing_loop import SESSIONS
from . import device_engine, device_input

SCHEMA = "edgesmith.device/1"
_CLASSES = ("accuracy", "top5", "f1-macro")  # metrics of one class per sample, whose answer is the top class
_CPUS = {"onnxruntime-x86": "x86", "onnxruntime-arm": "arm"}
_RUNTIMES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12",
)
_PREDICT_SECONDS = 3600.0
_BATCH = 32  # samples at once where no time is taken

Say = Callable[[str], None]


def main(folder: Path, manifest: Mapping[str, Any], identity: str, options: argparse.Namespace) -> int:
    """Measure, write result.json, and return the exit code."""
    try:
        with storage_errors(folder):
            (folder / "work").mkdir(exist_ok=True)
            with (folder / "work" / ".lock").open("w") as handle:
                _wait_for(handle)
                device_input.check_manifest(manifest)
                run = _Run(folder, manifest, identity, _settings(manifest, options))
                result = run.result()
                text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
                write_atomic(folder / "result.json", text)
    except EdgesmithError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    say(f"wrote {folder / 'result.json'}")
    judged = next(model for model in result["models"] if model["judged"])
    return ExitCode.PASS if judged["measured"] else ExitCode.UNPROVEN


def say(text: str) -> None:
    """A line of progress; a reader that has gone away, as ssh may, does not stop the measurement."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _wait_for(handle: Any) -> None:
    """Hold the folder; another process that measures here, started before a connection was lost, is waited for."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another process is measuring this bundle; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)


def _settings(manifest: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Threads, batch sizes, seconds per restart and batch size, restarts: the run's, or what was asked for."""
    measure = manifest["measure"]
    try:
        batches = [int(text) for text in options.batch.split(",")] if options.batch else list(measure["batch_sizes"])
    except ValueError as error:
        raise UsageError(f"--batch {options.batch}: write sizes as 1,8") from error
    threads = manifest["threads"] if options.threads is None else options.threads
    seconds = measure["seconds"] if options.seconds is None else options.seconds / measure["restarts"]
    if threads < 1 or min(batches) < 1 or not seconds > 0:
        raise UsageError("--threads, --batch and --seconds must be greater than 0")
    return {"threads": threads, "batch_sizes": batches, "seconds": seconds, "restarts": measure["restarts"]}


class _Run:
    """One pass over the bundle's models."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], identity: str, settings: Mapping[str, Any]) -> None:
        self._folder, self._manifest, self._settings = folder, manifest, settings
        self._reference = folder / manifest["reference"]
        self._arrays = device_input.read_reference(self._reference)
        self._device = {**environment.describe(settings["threads"], 0), **_runtimes(), "gpu": cuda_driver.capability()}
        self._key = {"bundle": identity, "device": self._device, "settings": settings}

    def result(self) -> dict[str, Any]:
        """What `result.json` holds."""
        return {
            "schema": SCHEMA,
            "bundle": self._key["bundle"],
            "task": self._manifest["task"],
            "metric": self._manifest["metric"]["name"],
            "higher_is_better": self._manifest["metric"]["higher_is_better"],
            "samples": len(self._arrays["labels"]),
            "confidence": self._manifest["confidence"],
            "settings": dict(self._settings),
            "device": self._device,
            "models": [self._model(model) for model in self._manifest["models"]],
        }

    def _model(self, model: Mapping[str, Any]) -> dict[str, Any]:
        target = model["target"]
        said = {key: model[key] for key in ("target", "dialect", "precision", "judged")}
        said["file_bytes"] = (self._folder / model["path"]).stat().st_size
        said["digest"] = self._manifest["files"][model["path"]]["sha256"]
        reason = unmeasurable(target)
        if not reason:
            try:
                return {**said, "measured": True, "reason": "", **self._measured(model)}
            except EdgesmithError as error:  # said in its row; the other models are measured all the same
                reason = str(error)
        say(f"{target}: not measured: {reason}")
        return {**said, "measured": False, "reason": reason}

    def _measured(self, model: Mapping[str, Any]) -> dict[str, Any]:
        target, original = model["target"], self._manifest["original"]
        paths, engines = {}, {}
        for side, entry in (("original", original), ("final", model)):
            paths[side] = self._folder / entry["path"]
            if target == "tensorrt":
                if entry["engine"]["problem"]:
                    raise MeasurementError(f"no engine can be built: {entry['engine']['problem']}")
                paths[side] = self._beside_engine(entry)
                say(f"{target}: building the engine of the {side} model")
                info = device_engine.build_beside(paths[side], entry["engine"])
                engines[side] = {"tool": info.tool, "version": info.version, "seconds": info.seconds}
                engines[side]["file_bytes"] = info.engine_bytes
        say(f"{target}: accuracy and parity on {len(self._arrays['labels'])} samples")
        answers = self._once(f"answers-{target}", lambda: self._answers(target, paths))
        say(f"{target}: latency at batch {', '.join(map(str, self._settings['batch_sizes']))}")
        timed = self._once(f"latency-{target}", lambda: {"latency": self._latency(target, paths)})
        return {**answers, **timed, "engines": engines}

    def _answers(self, target: str, paths: Mapping[str, Path]) -> dict[str, Any]:
        """What both sides answer here: against the labels, and against what they answered where the run was."""
        outputs = {side: self._outputs(target, side, path) for side, path in paths.items()}
        return {
            "accuracy": self._accuracy(outputs),
            "agreement": {side: self._agreement(side, found) for side, found in outputs.items()},
            "parity": [each for side, found in outputs.items() for each in self._parity(side, found)],
        }

    def _beside_engine(self, entry: Mapping[str, Any]) -> Path:
        """The ONNX file under `work/`, where engines are written: the bundle's own folders stay what they were."""
        source: Path = self._folder / entry["path"]
        goal = self._folder / "work" / "engines" / source.parent.name
        goal.mkdir(parents=True, exist_ok=True)
        for name in (source.name, entry["engine"]["parsed"]):
            shutil.copyfile(str(source.with_name(name)), str(goal / name))
        return goal / source.name

    def _once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gave for this bundle, device and settings, now or before."""
        path, key = self._folder / "work" / f"{name}.json", digest.of_json(self._key)
        try:
            done = json.loads(path.read_text(encoding="utf-8"))
            if done["key"] == key:
                say(f"  {name}: measured before")
                found: dict[str, Any] = done["found"]
                return found
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole: made again
            pass
        made = make()
        write_atomic(path, json.dumps({"key": key, "found": made}, allow_nan=False) + "\n")
        return made

    def _outputs(self, target: str, side: str, path: Path) -> dict[str, np.ndarray]:
        """Outputs of one model on the bundled samples, by name; checked to be those of the reference."""
        with tempfile.TemporaryDirectory(prefix="edgesmith-device-") as name:
            job = {"files": [str(path)], "target": target, "threads": self._settings["threads"], "batch": _BATCH}
            job.update(reference=str(self._reference), result=str(Path(name) / "outputs.npz"))
            child.run(f"{__package__}.device_predict", job, Path(name), self._settings["threads"], _PREDICT_SECONDS)
            with np.load(str(job["result"]), allow_pickle=False) as stored:
                found = under("outputs/", {output: stored[output] for output in stored.files})
        wanted = under(f"{side}/", self._arrays)
        shapes = ({output: array.shape for output, array in each.items()} for each in (found, wanted))
        if len({json.dumps(each, sort_keys=True) for each in shapes}) != 1:
            raise MeasurementError(f"{side}: the outputs here are not those of the reference in name and shape")
        return found

    def _metric(self) -> Metric | None:
        """The main metric; None where it is the task's own code, which does not travel."""
        said = self._manifest["metric"]
        return metrics.with_output(metrics.METRICS[said["table"]], said["output"]) if said["table"] else None

    def _accuracy(self, outputs: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any] | None:
        """Both sides' main metric here and, as `reference`, where the run was; and the paired drop; None: own code."""
        metric, labels, confidence = self._metric(), self._arrays["labels"], self._manifest["confidence"]
        if metric is None:
            return None
        here = {side: metrics.scores_of(metric, found, labels) for side, found in outputs.items()}
        there = {side: metrics.scores_of(metric, under(f"{side}/", self._arrays), labels) for side in outputs}
        return {
            **{side: vars(metrics.interval(metric, scores, confidence)) for side, scores in here.items()},
            "drop": vars(accuracy.paired_drop(metric, here["original"], here["final"], confidence)),
            "reference": {side: metrics.value(metric, scores) for side, scores in there.items()},
        }

    def _agreement(self, side: str, found: Mapping[str, np.ndarray]) -> float | None:
        """Share of samples whose top class is the reference's; None: the output is not one score per class."""
        said = self._manifest["metric"]
        name = said["output"] or next(iter(found))
        if said["table"] not in _CLASSES or found[name].ndim != 2:
            return None
        return float((found[name].argmax(1) == self._arrays[f"{side}/{name}"].argmax(1)).mean())

    def _parity(self, side: str, found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        return [
            {"side": side, "output": name, **distance(array, self._arrays[f"{side}/{name}"])}
            for name, array in found.items()
        ]

    def _latency(self, target: str, paths: Mapping[str, Path]) -> list[dict[str, Any]]:
        """The final model against the original in this target's runtime, a dict for each batch size."""
        pair = [Contender(label=side, session=target, path=path, file=path) for side, path in paths.items()]
        split, settings = ArraySplit(under("inputs/", self._arrays)), self._settings
        paired = latency.compare(
            pair,
            latency.rotating_feeds(split, settings["batch_sizes"]),
            settings["threads"],
            restarts=settings["restarts"],
            seconds=settings["restarts"] * settings["seconds"],
            confidence=self._manifest["confidence"],
            progress=lambda done, total: say(f"  {done} of {total}"),
        )
        return [
            {
                "batch": one.batch,
                "threads": one.threads,
                "original": vars(one.latency[0]),
                "final": vars(one.latency[1]),
                "clocks": one.clocks,
                "speedup": {**vars(one.speedup[0]), "noise_floor": one.noise_floor},
            }
            for one in paired
        ]


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose name begins so, by the rest of it."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def distance(found: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """`max_abs`, and `snr_db` (10 log10 of signal over noise power); None: equal, or no signal.

    Raises:
        MeasurementError: NaN or infinite values, which no distance can be told of.
    """
    ours, theirs = found.astype(np.float64), reference.astype(np.float64)
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise MeasurementError("an output is NaN or infinite: the model computes something else here")
    noise, signal = float(((ours - theirs) ** 2).sum()), float((theirs**2).sum())
    decibels = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
    return {"max_abs": float(np.abs(ours - theirs).max()) if ours.size else 0.0, "snr_db": decibels}


def unmeasurable(target: str) -> str:
    """Why nothing of this target can be measured here; empty: it can."""
    if target not in SESSIONS:
        return f"target '{target}' is not known to this bundle"
    if target == "openvino":
        return "" if _installed("openvino") else "openvino is not installed: pip install openvino"
    if target == "tensorrt":
        missing = "" if device_engine.tool() else "tensorrt is not installed: it comes with JetPack"
        return "no CUDA device" if cuda_driver.load() is None else missing
    if not _installed("onnxruntime"):
        return "onnxruntime is not installed: pip install onnxruntime"
    here = this_cpu()
    if target in _CPUS:
        return "" if here == _CPUS[target] else f"it is written for a CPU of kind '{_CPUS[target]}', this is '{here}'"
    return "" if target == "onnxruntime-cpu" else _no_provider(target[len("onnxruntime-") :])


def _no_provider(device: str) -> str:
    from ...exporters.sessions.ort_session import provider

    if device != "openvino" and cuda_driver.load() is None:
        return "no CUDA device"
    try:
        provider(device)
    except UsageError as error:
        return str(error)
    return ""


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _runtimes(names: Sequence[str] = _RUNTIMES) -> dict[str, str]:
    """Versions of what is installed as packages."""
    found = {}
    for name in names:
        try:
            found[name.replace("-", "_")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
