"""The one way an ONNX artefact is written, whatever its target."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import onnx

from ..core import digest
from ..core.errors import QuantizationError
from ..core.values import Artifact, QuantParams
from .dialect import Dialect
from .dynamic import write_int8
from .lint import Finding, refusals, summary
from .onnx_file import load, save, specs


def write_artifact(
    target: str,
    lint: Callable[[Path], tuple[Finding, ...]],
    model: onnx.ModelProto,
    params: Mapping[str, QuantParams] | None,
    dialect: Dialect | None,
    path: Path,
    keep_float: Collection[str] = (),
    rewrite: Callable[[onnx.ModelProto], None] = lambda written: None,
) -> Artifact:
    """Write, lint, describe. A file that its lint refuses does not stay.

    Args:
        rewrite: changes an INT8 graph in place to what the target runs fastest; the others as `Target.write`.

    Raises:
        QuantizationError: see `Target.write`.
    """
    if params is not None and dialect is None:
        raise QuantizationError(f"target '{target}': INT8 needs a dialect")
    written = model
    if params is not None and dialect is not None:
        written = write_int8(model, params, dialect, keep_float)
        rewrite(written)
    save(written, path)
    refused = refusals(lint(path))
    if refused:
        path.unlink()
        raise QuantizationError(f"target '{target}' would refuse the file: {summary(refused)}")
    inputs, outputs = specs(written)
    return Artifact(
        path=path,
        target=target,
        dialect="float" if params is None or dialect is None else dialect.name,
        precision="float32" if params is None else "int8",
        inputs=inputs,
        outputs=outputs,
        digest=digest.of_file(path),
    )


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
