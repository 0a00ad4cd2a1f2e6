"""A finished run as a folder or one archive that measures itself on a device without edgesmith, torch or onnx."""

import dataclasses
import gzip
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...benches.device.device_launcher import MANIFEST, SCHEMA
from ...benches.gates import artifact_check, finished
from ...benches.gates.finished import Finished
from ...benches.metrics import metrics
from ...benches.report.report import ArtifactResult
from ...core import digest
from ...core.errors import ArtifactError, RunDirectoryError, UsageError
from ...core.files import atomic_path, storage_errors
from ...core.task import Metric, Task
from ...exporters.engines.engine_build import device_command
from ...exporters.engines.engine_options import Build
from ...exporters.engines.engine_profile import profiles
from ...exporters.graph import half, onnx_file
from ...exporters.sessions.ort_session import PACKAGES
from .. import engines, recipe as recipes
from ..artifacts import MODEL
from ..data import sample_indices
from ..evaluation import task_metrics
from ..opened_run import task_of
from ..recipe import Recipe
from .device_files import device_files

SAMPLES = 256
ROOT = "edgesmith-bundle"  # the folder that everything in an archive stands in
REFERENCE = "reference.npz"
SUFFIXES = (".tar.gz", ".tgz", ".zip")
_CAST = "model.float16.onnx"
_SAID = ("target", "dialect", "precision")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """What was written."""

    path: str
    digest: str  # SHA-256 of its manifest.json, which holds that of every other file
    file_bytes: int
    targets: tuple[str, ...]  # the judged one first
    samples: int
    test_samples: int


def write(run: Path, out: Path, samples: int = SAMPLES) -> Bundle:
    """Write the bundle of a finished run as one archive; the same run gives the same bytes.

    Args:
        run: directory of a finished run.
        out: `.tar.gz`, `.tgz` or `.zip`.
        samples: test samples that go along at most.

    Raises:
        UsageError: another ending.
        RunDirectoryError, ArtifactError, TaskError: see `fill`.
    """
    if not out.name.endswith(SUFFIXES):
        raise UsageError(f"--out {out}: the name must end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    with tempfile.TemporaryDirectory(prefix="edgesmith-bundle-") as name, storage_errors(Path(name)):
        folder = Path(name)
        manifest = fill(run, folder, samples)
        with atomic_path(out) as partial:
            (_zip if out.suffix == ".zip" else _tar)(folder, partial)
        return Bundle(
            path=str(out),
            digest=digest.of_file(folder / MANIFEST),
            file_bytes=out.stat().st_size,
            targets=tuple(model["target"] for model in manifest["models"]),
            samples=manifest["samples"],
            test_samples=manifest["test_samples"],
        )


def fill(run: Path, folder: Path, samples: int = SAMPLES) -> dict[str, Any]:
    """Put everything into an empty folder; returns the manifest, which stands there as manifest.json.

    Raises:
        RunDirectoryError: not a finished run, or one whose task has changed since.
        ArtifactError: a file that is not what the report says.
        TaskError: the task cannot be loaded from where the run found it.
    """
    found, recipe = _finished(run), recipes.load(run / "recipe.toml")
    report = found.report
    task = task_of(run, recipe, int(str(report.environment["seed"])))
    for name, source in device_files().items():
        _copy(source, folder / name)
    test_samples = _write_reference(found, task, samples, folder / REFERENCE)
    judged_first = sorted(report.artifacts, key=lambda each: each.target != report.target)
    with_engines = any(each.target == engines.TARGET for each in judged_first)
    original = _model(_baseline(run, recipe, report.against), folder, "original", recipe.build, with_engines)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "edgesmith": report.environment.get("edgesmith", ""),
        "task": report.task,
        "needs": _needs(report.target),
        "metric": _metric(task_metrics(task)[0]),
        "confidence": report.confidence,
        "samples": min(samples, test_samples),
        "test_samples": test_samples,
        "threads": int(str(report.environment["threads"])),
        "measure": dataclasses.asdict(recipe.measure),
        "reference": REFERENCE,
        "original": {"against": report.against, **original},
        "models": [
            _artifact(run, each, folder, recipe.build, each.target == report.target, report.calibration_digest)
            for each in judged_first
        ],
    }
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"sha256": digest.of_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return manifest


def _finished(run: Path) -> Finished:
    found = finished.of_run(run)
    if found.arrays is None:
        raise RunDirectoryError(
            f"{run}: {found.report.predictions} is missing, which holds the reference outputs; "
            "run `edgesmith compress` again"
        )
    return found


def _baseline(run: Path, recipe: Recipe, against: str) -> Path:
    """The file of what the run was judged against, for the judged target."""
    ids = ["original", *(stage.id for stage in recipe.stages)]
    path = run / "measurements" / f"{ids.index(against):02d}-{against}" / MODEL
    if not path.is_file():
        raise RunDirectoryError(f"{path}: no such file; run `edgesmith compress` again")
    return path


def _write_reference(found: Finished, task: Task, samples: int, path: Path) -> int:
    """Inputs, labels and both sides' outputs of some test samples; returns how many the split has."""
    assert found.arrays is not None
    indices = np.sort(sample_indices(task.test, samples))
    inputs, labels = task.test.batch(indices)
    if labels is None or not np.array_equal(labels, found.arrays["labels"][indices]):
        raise RunDirectoryError(
            f"{found.path.parent}: the test split is not the one that the predictions were made on; "
            "run `edgesmith compress` again"
        )
    arrays: dict[str, Any] = {f"inputs/{name}": array for name, array in inputs.items()}
    for side in ("original", "final"):
        arrays |= {f"{side}/{name}": array[indices] for name, array in found.outputs(side).items()}
    np.savez(path, **arrays, labels=labels)
    return len(task.test)


def _artifact(
    run: Path, said: ArtifactResult, folder: Path, build: Build | None, judged: bool, calibration: str
) -> dict[str, Any]:
    path = run / said.path
    if problem := artifact_check.problem(path, said, calibration):
        raise ArtifactError(f"{path}: {problem}")
    copied = _model(path, folder, said.target, build, said.target == engines.TARGET)
    return {**{key: getattr(said, key) for key in _SAID}, "judged": judged, **copied}


def _model(path: Path, folder: Path, name: str, build: Build | None, with_engine: bool) -> dict[str, Any]:
    goal = folder / "models" / name / MODEL
    _copy(path, goal)
    engine = engine_how(goal, build or Build()) if with_engine else None
    return {"path": goal.relative_to(folder).as_posix(), "engine": engine}


def engine_how(path: Path, build: Build) -> dict[str, Any]:
    """How the device builds the engine of this file; what is to be FP16 is cast here, where onnx is."""
    model, parsed = onnx_file.load(path), path
    inputs, outputs = onnx_file.specs(model)
    command, note = device_command(path, build)
    try:
        found = profiles(inputs, build)
    except UsageError as error:
        return {"problem": str(error)}
    if build.precision == "float16":
        parsed = path.with_name(_CAST)
        onnx_file.save(half.to_half(model), parsed)
    return {
        "problem": "",
        "parsed": parsed.name,
        "profiles": {name: [one.min, one.opt, one.max] for name, one in found.items()},
        "quantized": half.is_quantized(model),
        "precision": build.precision,
        "workspace_mb": build.workspace_mb,
        "inputs": [dataclasses.asdict(spec) for spec in inputs],
        "outputs": [dataclasses.asdict(spec) for spec in outputs],
        "device_command": command,
        "device_note": note,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    """The main metric; `table` names one that can be computed on the device, None is the task's own code."""
    return {
        "name": metric.name,
        "table": metrics.table_name(metric),
        "output": metric.output,
        "higher_is_better": metric.higher_is_better,
    }


def _needs(target: str) -> Mapping[str, str]:
    """Modules without which the judged target cannot be measured, and what pip calls them."""
    needs = {"numpy": "numpy"}
    if target == "openvino":
        needs["openvino"] = "openvino"
    elif target.startswith("onnxruntime"):
        needs["onnxruntime"] = PACKAGES.get(target.removeprefix("onnxruntime-"), "onnxruntime")
    return needs  # TensorRT comes with the device's system, and is asked for where the engine is built


def _copy(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, goal)


def _tar(folder: Path, out: Path) -> None:
    with (
        out.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = tarfile.TarInfo(f"{ROOT}/{path.relative_to(folder).as_posix()}")
                info.size, info.mode = path.stat().st_size, 0o644
                with path.open("rb") as stream:
                    archive.addfile(info, stream)


def _zip(folder: Path, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(f"{ROOT}/{path.relative_to(folder).as_posix()}")  # its date is 1980
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with path.open("rb") as stream, archive.open(info, "w", force_zip64=True) as goal:
                    shutil.copyfileobj(stream, goal)
