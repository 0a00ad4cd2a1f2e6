"""An ONNX file to a TensorRT engine, in a process of its own, with what was built beside it as JSON."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from ...core import digest
from ...core.errors import UsageError
from ...core.files import atomic_path, storage_errors
from ..graph import half, onnx_file
from . import cuda_driver, engine_errors, engine_file
from .engine_file import EngineInfo
from .engine_options import TOOLS, Build, chosen_tool, tool_problem
from .engine_profile import Profile, profiles, trtexec, trtexec_note

_CHILD = "engine_build_child"


def build(path: Path, engine: Path, options: Build | None = None) -> EngineInfo:
    """Build `engine` from the ONNX file at `path`; both it and its JSON file are complete or absent.

    With precision "float16" the cast graph is kept beside the engine as `NAME.float16.onnx`: the device builds from it.

    Args:
        path: ONNX file; TensorRT's own rules are not checked here, see `TensorRT.lint`.
        engine: where to write.
        options: None: the defaults.

    Raises:
        UsageError: no tool is installed; sizes are missing, or fit no input.
        ArtifactError: not an ONNX file.
        QuantizationError: it cannot be cast to FP16.
        BuildError: the tool refuses the graph, cannot build it, or crashed.
    """
    options = options or Build()
    problem = tool_problem(options.tool)
    if problem is not None:
        raise UsageError(problem)
    tool, model = chosen_tool(options.tool), onnx_file.load(path)
    found = profiles(onnx_file.specs(model)[0], options)
    with _parsed_file(path, model, engine, options) as parsed, atomic_path(engine) as partial:
        result = _run(_job(parsed, partial, tool, model, found, options), tool, path, model)
        files: dict[str, Any] = {
            "source_digest": digest.of_file(path),
            "onnx_digest": digest.of_file(parsed),
            "engine_digest": digest.of_file(partial),
            "engine_bytes": partial.stat().st_size,
        }
    info = EngineInfo(**files, **_info(path, model, found, options, tool, result))
    engine_file.write(info, engine)
    return info


def device_command(path: Path, options: Build) -> tuple[str, str]:
    """The command that builds the file at `path` on the device, and a note; no command where sizes are missing."""
    model = onnx_file.load(path)
    try:
        command = trtexec(_parsed_name(path, options), profiles(onnx_file.specs(model)[0], options), options)
    except UsageError as error:
        return "", str(error)
    return command, trtexec_note(half.is_quantized(model), options.precision == "float16")


def _parsed_name(path: Path, options: Build) -> str:
    return path.name if options.precision == "as-is" else f"{path.stem}.float16.onnx"


@contextlib.contextmanager
def _parsed_file(path: Path, model: onnx.ModelProto, engine: Path, options: Build) -> Iterator[Path]:
    """The file that the tool reads; a cast one stays beside the engine when the build ends well."""
    if options.precision == "as-is":
        yield path
        return
    with atomic_path(engine.with_name(_parsed_name(path, options))) as partial:
        onnx_file.save(half.to_half(model), partial)
        yield partial


def _job(
    parsed: Path, partial: Path, tool: str, model: onnx.ModelProto, found: Mapping[str, Profile], options: Build
) -> dict[str, Any]:
    return {
        "module": TOOLS[tool].module,
        "onnx": str(parsed),
        "engine": str(partial),
        "profiles": {name: [profile.min, profile.opt, profile.max] for name, profile in found.items()},
        "quantized": half.is_quantized(model),
        "half": options.precision == "float16",
        "workspace_mb": options.workspace_mb,
        "compute_capabilities": list(options.compute_capabilities),
        "timing_cache": options.timing_cache,
    }


def _run(job: dict[str, Any], tool: str, path: Path, model: onnx.ModelProto) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgesmith-build-") as name:
        folder = Path(name)
        with storage_errors(folder):
            written = {**job, "result": str(folder / "result.json"), "parent": os.getpid()}
            (folder / "job.json").write_text(json.dumps(written), encoding="utf-8")
        code, stderr = _wait(folder / "job.json")
        if code != 0 or not (folder / "result.json").is_file():
            raise engine_errors.died(path, tool, code, stderr)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if "refused" in result:
        raise engine_errors.refused(path, tool, result["refused"], model)
    return result


def _wait(job: Path) -> tuple[int, str]:
    # -P: a tensorrt.py in the user's folder must not be imported instead of NVIDIA's.
    command = [sys.executable, "-P", "-m", f"{__package__}.{_CHILD}", str(job)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        try:
            _, stderr = child.communicate()
        except BaseException:  # Ctrl-C above all: the child must not go on building, whatever ended us
            child.kill()
            raise
    return child.returncode, stderr


def _info(
    path: Path,
    model: onnx.ModelProto,
    found: Mapping[str, Profile],
    options: Build,
    tool: str,
    result: Mapping[str, Any],
) -> dict[str, Any]:
    inputs, outputs = onnx_file.specs(model)
    name, quantized = _parsed_name(path, options), half.is_quantized(model)
    return {
        "tool": tool,
        "version": result["version"],
        "proves": TOOLS[tool].proves,
        "onnx": name,
        "weights_bytes": engine_errors.weights_bytes(result["log"]),
        "inputs": inputs,
        "outputs": outputs,
        "profiles": {
            name: {"min": profile.min, "opt": profile.opt, "max": profile.max} for name, profile in found.items()
        },
        "precision": options.precision,
        "quantized": quantized,
        "compute_capabilities": options.compute_capabilities,
        "built_on": cuda_driver.capability() if tool == "tensorrt" else None,
        "workspace_mb": options.workspace_mb,
        "platform": f"{platform.system()} {platform.machine()}",
        "seconds": result["seconds"],
        "device_command": trtexec(name, found, options),
        "device_note": trtexec_note(quantized, options.precision == "float16"),
    }
