"""SHA-256 digests of the things a run depends on. Equal digest, equal thing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError

_CHUNK = 1 << 20


def of_bytes(data: bytes) -> str:
    """Hexadecimal digest of raw bytes."""
    return hashlib.sha256(data).hexdigest()


def of_json(value: Any) -> str:
    """Digest of a JSON-able value; the order of keys does not matter, floats keep every digit.

    Raises:
        ValueError: a float that is not finite, which JSON cannot say.
    """
    return of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def of_file(path: Path) -> str:
    """Digest of a file's content, read in pieces."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of named arrays: names, dtypes, shapes and values.

    Raises:
        DataError: an array of Python objects, whose bytes are addresses and differ from run to run.
    """
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.hasobject:
            raise DataError(f"array '{name}' holds Python objects; give it a fixed type such as float32, int64 or <U32")
        state.update(f"{name}:{array.dtype}:{array.shape};".encode())
        # As bytes: types that Python's buffers do not know (bfloat16, dates) are data too.
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")
    return state.hexdigest()


def of_samples(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """One digest per sample (axis 0 of every array), to find samples that two splits share."""
    count = len(next(iter(arrays.values())))
    return [of_arrays({name: array[index] for name, array in arrays.items()}) for index in range(count)]
