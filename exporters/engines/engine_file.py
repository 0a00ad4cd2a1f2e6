"""An engine file and `NAME.engine.json` beside it: what it is, and whether it can run here. Needs numpy only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core import digest
from ...core.errors import ArtifactError
from ...core.files import write_atomic
from ...core.values import TensorSpec

SCHEMA = "edgesmith.engine/1"
SUFFIX = ".engine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What stands in the JSON file."""

    tool: str  # key in engine_options.TOOLS
    version: str  # of the tool
    proves: str
    source_digest: str  # SHA-256 of the ONNX file that was given
    onnx: str  # name of the ONNX file that was parsed: the same, or its FP16 form beside the engine
    onnx_digest: str
    engine_digest: str
    engine_bytes: int
    weights_bytes: int | None  # what the tool says of the weights; None: it says nothing
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, Mapping[str, tuple[int, ...]]]  # input -> "min", "opt", "max" -> shape
    precision: str  # "as-is" or "float16"
    quantized: bool  # Q/DQ pairs are in the graph
    compute_capabilities: tuple[str, ...]  # that were asked for; empty: the tool's default
    built_on: str | None  # compute capability of the GPU the tool built for; None: no GPU was used
    workspace_mb: int | None
    platform: str
    seconds: float  # of the build
    device_command: str  # builds the same on the device, in the folder of the ONNX file
    device_note: str


def beside(engine: Path) -> Path:
    """Where the JSON file of an engine stands."""
    return engine.with_name(engine.name + ".json")


def write(info: EngineInfo, engine: Path) -> None:
    """Write the JSON file."""
    text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(info)}, indent=2, allow_nan=False)
    write_atomic(beside(engine), text + "\n")


def read(engine: Path) -> EngineInfo:
    """What an engine is; checked to be this very file.

    Raises:
        ArtifactError: no engine, no JSON file, another schema, or an engine that is not the one it speaks of.
    """
    if not engine.is_file():
        raise ArtifactError(f"{engine}: no such engine; build it: edgesmith build MODEL.onnx --out {engine.name}")
    path = beside(engine)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema", None) != SCHEMA:
            raise ArtifactError(f"{path}: not of schema '{SCHEMA}'; build the engine again")
        info = _info(data)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); build the engine again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: does not describe an engine ({error}); build the engine again") from error
    if digest.of_file(engine) != info.engine_digest:
        raise ArtifactError(f"{engine}: not the file that {path.name} describes; build the engine again")
    return info


def refusal(info: EngineInfo, tool: str, version: str, capability: str | None) -> str | None:
    """Why an engine cannot run with this tool, version and GPU, or None. Engines are bound to all three.

    Args:
        info: of the engine.
        tool: key in engine_options.TOOLS that is here.
        version: of that tool.
        capability: compute capability of the GPU, "8.6"; None: not known.
    """
    if info.tool != tool:
        return f"built by {info.tool} {info.version}, and {tool} {version} is here"
    if info.version != version:
        return f"built by {info.tool} {info.version}, and version {version} is here: engines fit one version only"
    fitting = info.compute_capabilities or ((info.built_on,) if info.built_on else ())
    if capability is not None and fitting and capability not in fitting:
        return f"built for compute capability {', '.join(fitting)}, and the GPU here has {capability}"
    return None


def _info(data: Mapping[str, Any]) -> EngineInfo:
    return EngineInfo(
        **{
            **data,
            "inputs": _specs(data["inputs"]),
            "outputs": _specs(data["outputs"]),
            "profiles": {
                name: {side: tuple(shape) for side, shape in sides.items()} for name, sides in data["profiles"].items()
            },
            "compute_capabilities": tuple(data["compute_capabilities"]),
        }
    )


def _specs(listed: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in listed)
