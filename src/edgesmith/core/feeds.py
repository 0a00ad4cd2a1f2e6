"""What a session is fed, held against what its file says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import DataError
from .values import Arrays, TensorSpec


def check_feed(path: Path | str, inputs: Sequence[TensorSpec], feed: Arrays) -> None:
    """Raise DataError where an input of the file at `path` is missing, or has another type or shape than it says."""
    for spec in inputs:
        if spec.name not in feed:
            raise DataError(f"{path}: input '{spec.name}' is missing; given: {', '.join(feed) or 'nothing'}")
        array = feed[spec.name]
        sizes = zip(array.shape, spec.shape)
        fits = len(array.shape) == len(spec.shape) and all(isinstance(w, str) or g == w for g, w in sizes)
        if str(array.dtype) != spec.dtype or not fits:
            wanted = f"{spec.dtype} ({', '.join(map(str, spec.shape))})"
            raise DataError(f"{path}: input '{spec.name}' must be {wanted}, got {array.dtype} {array.shape}")
