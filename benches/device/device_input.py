"""What a bundle says of itself, looked at before any of it is used: the values of manifest.json, and reference.npz.

That every file is what the manifest says, `run.py` has seen. Whoever wrote the manifest may have written all of it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ...core.errors import ArtifactError
from ..metrics import metrics

AGAIN = "bundle the run again"
_SIDES = ("original", "final")

Holds = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_count, value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _profiles(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shapes, list) and len(shapes) == 3 and all(map(_counts, shapes)) for shapes in value.values()
    )


def _specs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(spec, dict)
        and set(spec) == {"name", "dtype", "shape"}
        and _text(spec["name"])
        and _text(spec["dtype"])
        and isinstance(spec["shape"], list)
        and all(_text(size) or _count(size) for size in spec["shape"])
        for spec in value
    )


# Key, by its path -> what it must be, in words and as a test.
_WHOLE: dict[str, tuple[str, Holds]] = {
    "task": ("a text", _text),
    "confidence": ("a number between 0 and 1", lambda value: _number(value) and 0 < value < 1),
    "threads": ("a whole number from 1 on", _count),
    "measure.batch_sizes": ("whole numbers from 1 on", _counts),
    "measure.seconds": ("a number above 0", lambda value: _number(value) and value > 0),
    "measure.restarts": ("a whole number from 2 on", lambda value: _count(value) and value > 1),
    "metric.name": ("a text", _text),
    "metric.table": ("a metric that this version has, or null", lambda value: value is None or _known(value)),
    "metric.output": ("a text or null", lambda value: value is None or _text(value)),
    "metric.higher_is_better": ("true or false", _flag),
}
_MODEL: dict[str, tuple[str, Holds]] = {
    "target": ("a text", _text),
    "dialect": ("a text", _text),
    "precision": ("a text", _text),
    "judged": ("true or false", _flag),
}
_ENGINE: dict[str, tuple[str, Holds]] = {
    "profiles": ("three shapes for each input", _profiles),
    "quantized": ("true or false", _flag),
    "precision": ("as-is or float16", lambda value: value in ("as-is", "float16")),
    "workspace_mb": ("a whole number from 1 on, or null", lambda value: value is None or _count(value)),
    "inputs": ("tensors", _specs),
    "outputs": ("tensors", _specs),
    "device_command": ("a text", _text),
    "device_note": ("a text", _text),
}


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Look at every value that is used on the device.

    Args:
        manifest: of a bundle whose files are what it says.

    Raises:
        ArtifactError: one is missing or is not what it must be; says which, what it is and what it must be.
    """
    _hold(manifest, _WHOLE, "")
    files = set(manifest["files"])
    _file(manifest, "reference", "", files)
    _file(_at(manifest, "original", ""), "path", "original.", files)
    models = manifest.get("models")
    if not isinstance(models, list) or not all(isinstance(each, dict) for each in models):
        raise _wrong("models", models, "a list of models")
    for index, model in enumerate(models):
        _hold(model, _MODEL, f"models[{index}].")
        _file(model, "path", f"models[{index}].", files)
    judged = sum(model["judged"] for model in models)
    if judged != 1:
        raise ArtifactError(f"manifest.json: models: {judged} of them are judged, must be one; {AGAIN}")
    if any(model["target"] == "tensorrt" for model in models):
        named = {f"models[{index}].": model for index, model in enumerate(models) if model["target"] == "tensorrt"}
        for where, model in {"original.": manifest["original"], **named}.items():
            _engine(_at(model, "engine", where), where + "engine.", model["path"], files)


def read_reference(path: Path) -> dict[str, np.ndarray]:
    """Inputs, labels and both sides' outputs of the bundled samples: `inputs/NAME`, `SIDE/NAME` and `labels`.

    Raises:
        ArtifactError: no whole .npz, or not that in it, as many of each.
    """
    if not zipfile.is_zipfile(str(path)):
        raise ArtifactError(f"{path.name}: not a whole .npz file; {AGAIN}")
    try:
        with np.load(str(path), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ArtifactError(f"{path.name}: not a whole .npz file ({error}); {AGAIN}") from error
    for kind in ("inputs/", *(f"{side}/" for side in _SIDES), "labels"):
        if not any(name.startswith(kind) for name in arrays):
            raise ArtifactError(f"{path.name}: nothing is called {kind}{'NAME' if kind[-1] == '/' else ''}; {AGAIN}")
    lengths = {
        name: len(array) if isinstance(array, np.ndarray) and array.ndim else 0 for name, array in arrays.items()
    }
    count = lengths.get("labels", 0)
    for name, length in lengths.items():
        if length != count or not length:
            raise ArtifactError(f"{path.name}: '{name}' holds {length} sample(s), 'labels' {count}; {AGAIN}")
    return arrays


def _known(name: Any) -> bool:
    return isinstance(name, str) and name in metrics.METRICS


def _engine(how: Any, where: str, path: str, files: set[str]) -> None:
    _hold(how, {"problem": ("a text", _text)}, where)
    if how["problem"]:
        return
    _hold(how, _ENGINE, where)
    parsed = how.get("parsed")
    if not _text(parsed) or f"{path.rpartition('/')[0]}/{parsed}" not in files:
        raise _wrong(f"{where}parsed", parsed, f"a file beside {path}")


def _hold(tree: Any, rules: Mapping[str, tuple[str, Holds]], where: str) -> None:
    for key, (wanted, holds) in rules.items():
        value = _at(tree, key, where)
        if not holds(value):
            raise _wrong(where + key, value, wanted)


def _at(tree: Any, key: str, where: str) -> Any:
    """The value under a key; with a dot, under a key of a key."""
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            raise ArtifactError(f"manifest.json: no {where}{key}; {AGAIN}")
        tree = tree[name]
    return tree


def _file(tree: Any, key: str, where: str, files: set[str]) -> None:
    value = _at(tree, key, where)
    if not _text(value) or value not in files:
        raise _wrong(where + key, value, "a file of the bundle")


def _wrong(key: str, value: Any, wanted: str) -> ArtifactError:
    said = repr(value)
    return ArtifactError(f"manifest.json: {key}: {said[:60]}{'...' * (len(said) > 60)}, must be {wanted}; {AGAIN}")
