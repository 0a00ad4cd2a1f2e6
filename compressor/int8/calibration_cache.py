"""Calibrations that were made before: found again by the digest of everything they depend on, in a user's folder."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pydantic

from ...calibration.ranges import TensorRange
from ...core import digest
from ...core.values import QuantParams
from .. import user_cache
from ..values import params_from_json, params_to_json

_MAKES_RANGES = ("graph", "int8", "sessions")  # of exporters/
_CODE = (
    "calibration/*.py",
    *(f"exporters/{room}/*.py" for room in _MAKES_RANGES),
    "compressor/int8/calibrat*.py",
    "compressor/values.py",
)
_RANGES = pydantic.TypeAdapter(tuple[TensorRange, ...])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """Parameters of weights and activations, and the nodes that cannot have any."""

    params: Mapping[str, QuantParams]
    keep_float: Mapping[str, str]  # node -> why it stays in float
    ranges: tuple[TensorRange, ...] = ()  # of the activations


def user_folder() -> Path:
    """Where a user's calibrations are kept."""
    return user_cache.folder_of("calibration")


class Cache:
    """One file for each calibration, named by its key.

    Args:
        folder: where they lie; made when the first is kept.
        data: digest of all samples in their order and batches.
        say: gets a line where a calibration was found, was damaged, or could not be kept.
    """

    def __init__(self, folder: Path, data: str, say: Callable[[str], None]) -> None:
        self._data = data
        self._kept = user_cache.UserCache(
            folder=folder,
            what="ranges",
            same="with the same graph, data and settings",
            anew="--no-cache finds them anew",
            unkept="--no-cache does not try",
            say=say,
        )

    def once(self, model: onnx.ModelProto, settings: Mapping[str, Any], make: Callable[[], Calibrated]) -> Calibrated:
        """What `make` returns, made now or found from an earlier call with the same graph, data and settings."""
        key = {"graph": _digest_of(model), "data": self._data, "settings": dict(settings), "code": _code_digest()}
        return self._kept.once(key, make, _to_json, _from_json)


def _to_json(made: Calibrated) -> dict[str, Any]:
    return {
        "params": params_to_json(made.params),
        "keep_float": dict(made.keep_float),
        "ranges": [dataclasses.asdict(each) for each in made.ranges],
    }


def _from_json(content: Any) -> Calibrated:
    return Calibrated(
        params=params_from_json(content["params"]),
        keep_float=content["keep_float"],
        ranges=_RANGES.validate_python(content["ranges"]),
    )


def _digest_of(model: onnx.ModelProto) -> str:
    """Digest of everything a graph computes; part by part, for a whole of more than 2 GB has no bytes."""
    graph, state = model.graph, hashlib.sha256()
    parts = (graph.node, graph.initializer, graph.sparse_initializer, graph.input, graph.output, model.functions)
    for part in (*parts, model.opset_import):
        state.update(f"{len(part)};".encode())
        for entry in part:
            state.update(hashlib.sha256(entry.SerializeToString(deterministic=True)).digest())
    return state.hexdigest()


def _code_digest() -> str:
    """Of what makes ranges: neither another release nor an edited checkout gets those of the one before."""
    root = Path(__file__).resolve().parents[2]
    sources = [path for pattern in _CODE for path in sorted(root.glob(pattern))]
    versions = [onnxruntime.__version__, onnx.__version__, np.__version__]
    return digest.of_json([*map(digest.of_file, sources), *versions])
