"""Engines of the target "tensorrt" in a run: whether one is built, what its result hangs on, what the report says."""

import dataclasses
from pathlib import Path
from typing import Any

from ..benches.report.report import EngineResult
from ..core.values import Artifact
from ..exporters.engines import engine_build, engine_file
from ..exporters.engines.engine_options import Build, tool_version
from ..exporters.targets.targets import TARGETS
from .schema import plain

TARGET = "tensorrt"


def wanted(target: str, asked: Build | None, folder: Path, final: bool) -> Build | None:
    """How a file's engine is built, or None. Final files: if the recipe asks; where they are measured: every one.

    Args:
        asked: the recipe's `[build]`.
        folder: where its relative paths start.
    """
    if target != TARGET:
        return None
    options = asked
    if options is not None and options.timing_cache is not None:
        options = dataclasses.replace(options, timing_cache=str((folder / options.timing_cache).resolve()))
    if TARGETS[TARGET].unmeasurable() is None:
        return options or Build()
    return options if final else None


def key(engine: Build | None) -> dict[str, Any]:
    """What the result hangs on besides the file; a timing cache makes a build faster, and is left out."""
    if engine is None:
        return {}
    return {"engine": plain(dataclasses.replace(engine, timing_cache=None)), "tool": tool_version(engine.tool)}


def build_beside(artifact: Artifact, engine: Build) -> None:
    """Build `NAME.engine` beside the file."""
    engine_build.build(artifact.path, artifact.path.with_suffix(engine_file.SUFFIX), engine)


def report(artifact: Artifact, asked: Build | None, out: Path) -> dict[str, Any]:
    """The fields of `ArtifactResult` that are about engines."""
    if artifact.target != TARGET:
        return {}
    path = artifact.path.with_suffix(engine_file.SUFFIX)
    command, note = engine_build.device_command(artifact.path, asked or Build())
    return {
        "engine": _result(path, out) if path.is_file() else None,
        "device_command": command,
        "device_note": note,
    }


def _result(path: Path, out: Path) -> EngineResult:
    info = engine_file.read(path)
    return EngineResult(
        path=str(path.relative_to(out)),
        tool=info.tool,
        version=info.version,
        proves=info.proves,
        precision="float16" if info.precision == "float16" else "as-is",
        weights_bytes=info.weights_bytes,
        file_bytes=info.engine_bytes,
        digest=info.engine_digest,
        seconds=info.seconds,
    )
