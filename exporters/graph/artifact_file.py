"""A file that is there as an artefact."""

from pathlib import Path

from ...core import digest
from ...core.values import Artifact
from .onnx_file import load, specs


def describe_file(path: Path, target: str) -> Artifact:
    """A float ONNX file that is there, as an artefact."""
    inputs, outputs = specs(load(path))
    return Artifact(
        path=path,
        target=target,
        dialect="float",
        precision="float32",
        inputs=inputs,
        outputs=outputs,
        digest=digest.of_file(path),
    )
