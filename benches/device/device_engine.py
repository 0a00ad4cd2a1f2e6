"""A TensorRT engine on the device, built from a bundle's ONNX file with what the run had recorded. Needs no onnx."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core import digest
from ...core.errors import ArtifactError, BuildError, MeasurementError
from ...core.files import atomic_path
from ...core.values import TensorSpec
from ...exporters.engines import cuda_driver, engine_file
from ...exporters.engines.engine_file import EngineInfo

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_CHILD = "exporters.engines.engine_build_child"
_TAIL_LINES = 12


def tool() -> str | None:
    """The first builder that is installed; None: there is none."""
    return next((name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None), None)


def build_beside(path: Path, how: Mapping[str, Any], timeout: float = 3600.0) -> EngineInfo:
    """Build `NAME.engine` beside the ONNX file at `path`, or take the one that is there and is of this file.

    Args:
        path: ONNX file; where `how` says "float16", its cast form stands beside it.
        how: `parsed` (name of the file that the builder reads), `profiles` (input -> three shapes), `quantized`,
            `precision`, `workspace_mb`, `inputs`, `outputs`, `device_command`, `device_note`.
        timeout: seconds.

    Raises:
        MeasurementError: no builder is installed here.
        BuildError: it refuses the file, or crashed.
    """
    engine, name = path.with_suffix(engine_file.SUFFIX), tool()
    if name is None:
        raise MeasurementError("tensorrt is not installed: it comes with JetPack, elsewhere: pip install tensorrt")
    try:
        found = engine_file.read(engine)
        if found.source_digest == digest.of_file(path) and found.tool == name:
            return found
    except ArtifactError:  # none yet, or half of one
        pass
    parsed = path.with_name(str(how["parsed"]))
    with atomic_path(engine) as partial:
        result = _run(path, _job(parsed, partial, name, how), timeout)
        info = EngineInfo(
            tool=name,
            version=result["version"],
            proves="an engine for the GPU it was built on and for this version of TensorRT",
            source_digest=digest.of_file(path),
            onnx=parsed.name,
            onnx_digest=digest.of_file(parsed),
            engine_digest=digest.of_file(partial),
            engine_bytes=partial.stat().st_size,
            weights_bytes=None,
            inputs=_specs(how["inputs"]),
            outputs=_specs(how["outputs"]),
            profiles={
                each: dict(zip(("min", "opt", "max"), map(tuple, shapes))) for each, shapes in how["profiles"].items()
            },
            precision=how["precision"],
            quantized=how["quantized"],
            compute_capabilities=(),
            built_on=cuda_driver.capability(),
            workspace_mb=how["workspace_mb"],
            platform=f"{platform.system()} {platform.machine()}",
            seconds=result["seconds"],
            device_command=how["device_command"],
            device_note=how["device_note"],
        )
    engine_file.write(info, engine)
    return info


def _job(parsed: Path, partial: Path, name: str, how: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "module": MODULES[name],
        "onnx": str(parsed),
        "engine": str(partial),
        "profiles": how["profiles"],
        "quantized": how["quantized"],
        "half": how["precision"] == "float16",
        "workspace_mb": how["workspace_mb"],
        "compute_capabilities": [],  # the GPU at hand
        "timing_cache": None,
    }


def _run(path: Path, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    package = __package__.partition(".")[0]
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    with tempfile.TemporaryDirectory(prefix="edgesmith-build-") as name:
        place, result = Path(name) / "job.json", Path(name) / "result.json"
        place.write_text(json.dumps({**job, "result": str(result), "parent": os.getpid()}), encoding="utf-8")
        command = [sys.executable, *safe, "-m", f"{package}.{_CHILD}", str(place)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{path}: no engine after {timeout:g} s; the builder was stopped") from error
        if done.returncode != 0 or not result.is_file():
            tail = done.stderr.decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
            raise BuildError("\n  ".join([f"{path}: the builder ended with code {done.returncode}", *tail]))
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "refused" in found:
        raise BuildError(f"{path}: {job['module']} refuses it: {_reason(found['refused'])}")
    return found


def _reason(facts: Mapping[str, Any]) -> str:
    """The parser's first error, or the last that the tool logged, or the step that failed."""
    errors = [f"node '{each['node']}' ({each['operator']}): {each['description']}" for each in facts.get("errors", ())]
    logged = [text for severity, text in facts.get("log", ()) if severity in ("ERROR", "INTERNAL_ERROR")]
    return (errors[:1] or logged[-1:] or [facts.get("message", facts["step"])])[0]


def _specs(listed: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in listed)
