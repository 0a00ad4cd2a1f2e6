"""The engine beside an ONNX file: reused where it was made from this very file and fits what is here, else built."""

from __future__ import annotations

from pathlib import Path

from ...core import digest
from ...core.errors import ArtifactError
from . import engine_file
from .engine_session import EngineSession


def open_beside(path: Path) -> EngineSession:
    """A session for the ONNX file at `path`.

    Raises:
        EdgesmithError: see `engine_build.build` and `EngineSession`.
    """
    engine = path.with_suffix(engine_file.SUFFIX)
    if _made_from(engine, path):
        try:
            return EngineSession(engine)
        except ArtifactError:  # of another version or GPU: that is what building it again is for
            engine_file.beside(engine).unlink()
    from .engine_build import build  # only here: what measures should load no more than what runs

    build(path, engine)
    return EngineSession(engine)


def _made_from(engine: Path, path: Path) -> bool:
    try:
        return engine_file.read(engine).source_digest == digest.of_file(path)
    except ArtifactError:
        return False
