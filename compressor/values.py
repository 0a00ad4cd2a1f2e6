"""How the values that pass between stages are stored and opened."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.ranges import TensorRange
from ..core import digest
from ..core.errors import ArtifactError
from ..core.values import QuantParams
from .candidate import Candidate
from .stage import Graph

_WEIGHTS, _GRAPH, _PARAMS, _TRAINED = "model.safetensors", "model.onnx", "quant_params.json", "trained.onnx"


def save(value: Candidate | Graph, folder: Path) -> None:
    """Store a value in an empty directory."""
    if isinstance(value, Candidate):
        value.save(folder / _WEIGHTS)
        return
    shutil.copyfile(value.path, folder / _GRAPH)
    if value.trained is not None:
        shutil.copyfile(value.trained, folder / _TRAINED)
    if value.params is not None:
        data = {
            "params": params_to_json(value.params),
            "keep_float": dict(value.keep_float),
            "ranges": [dataclasses.asdict(each) for each in value.ranges],
            "calibration": value.calibration,
        }
        (folder / _PARAMS).write_text(json.dumps(data, indent=1), encoding="utf-8")


def load(folder: Path, like: Candidate | None) -> Candidate | Graph:
    """Open what `save` stored; a candidate is built from the class of `like`."""
    if like is not None and (folder / _WEIGHTS).exists():
        return Candidate.load(folder / _WEIGHTS, like.factory, like.example)
    path = folder / _GRAPH
    if not (folder / _PARAMS).exists():
        return Graph(path=path, digest=digest.of_file(path))
    data = json.loads((folder / _PARAMS).read_text(encoding="utf-8"))
    params = params_from_json(data["params"])
    ranges = tuple(TensorRange(**each) for each in data["ranges"])
    kept = {"keep_float": data["keep_float"], "ranges": ranges, "calibration": data["calibration"]}
    trained = folder / _TRAINED if (folder / _TRAINED).exists() else None
    return Graph(path=path, digest=digest.of_file(path), params=params, trained=trained, **kept)


def digest_of(value: Candidate | Graph) -> str:
    """Digest of everything a value consists of."""
    if isinstance(value, Candidate):
        return value.digest()
    content = digest.of_file(value.path)
    if content != value.digest:
        raise ArtifactError(f"{value.path}: the file has changed since it was written")
    if value.params is None:
        return content
    trained = [] if value.trained is None else [digest.of_file(value.trained)]
    return digest.of_json([content, params_to_json(value.params), dict(value.keep_float), *trained])


def params_to_json(params: Mapping[str, QuantParams]) -> dict[str, Any]:
    """Quantization parameters as plain data."""
    return {
        name: {
            "low": p.low,
            "high": p.high,
            "scale": np.asarray(p.scale, np.float64).tolist(),
            "zero_point": p.zero_point,
            "axis": p.axis,
            "bits": p.bits,
            "origin": p.origin,
        }
        for name, p in sorted(params.items())
    }


def params_from_json(data: Mapping[str, Any]) -> dict[str, QuantParams]:
    """The inverse of `params_to_json`."""
    return {
        name: QuantParams(**{**entry, "scale": np.asarray(entry["scale"], np.float32)}) for name, entry in data.items()
    }


def has_ranges(value: Candidate | Graph) -> bool:
    """Whether it is to be written in INT8, in a form that has to be chosen."""
    return isinstance(value, Graph) and value.params is not None
