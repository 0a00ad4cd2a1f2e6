"""What is timed and weighed: a file and the kind of session that opens it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import MeasurementError, UsageError
from ...core.values import Artifact
from .timing_loop import SESSIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of a comparison across runtimes."""

    label: str  # "torch eager", or the file's name
    session: str  # key of `timing_loop.SESSIONS`, or "package.module:function" of (path, threads) -> session
    path: Path  # what the session opens
    file: Path  # what would be deployed, for its size; often the same
    reason: str = ""  # why it cannot be measured here; empty: it is measured
    optional: bool = False  # a failure of its own is said in its column and stops nothing


def kinds_of(files: Sequence[Artifact | Path | Contender]) -> list[str]:
    """The session kind of each; a bare path is an ONNX file for ONNX Runtime.

    Raises:
        UsageError: artefacts of different targets: only contenders, whose kind is named, may cross runtimes.
        MeasurementError: a target that has no session here.
    """
    kinds = [kind_of(file) for file in files]
    plain = {kind for kind, file in zip(kinds, files) if not isinstance(file, Contender)}
    if len(plain) > 1:
        raise UsageError(f"files of different targets cannot be paired: {', '.join(sorted(plain))}")
    for kind in kinds:
        if ":" not in kind and kind not in SESSIONS:
            raise MeasurementError(f"target '{kind}' cannot be timed here; timed are: {', '.join(sorted(SESSIONS))}")
    return kinds


def kind_of(file: Artifact | Path | Contender) -> str:
    """See `kinds_of`."""
    if isinstance(file, Contender):
        return file.session
    return file.target if isinstance(file, Artifact) else "onnxruntime-cpu"


def path_of(file: Artifact | Path | Contender) -> Path:
    """What the session opens."""
    return file if isinstance(file, Path) else file.path
