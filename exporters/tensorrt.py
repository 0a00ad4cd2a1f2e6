"""TensorRT: an ONNX file with explicit Q/DQ, and the engine that is built from it."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx

from ..core.errors import BuildError, MeasurementError
from ..core.values import Artifact, QuantParams, Session
from . import cuda_driver, engine_build, onnx_file
from .artifact_file import write_artifact
from .dialect import Dialect
from .engine_file import EngineInfo
from .engine_open import open_beside
from .engine_options import Build, tool_problem
from .lint import Finding, Rule, check_file, refusals, summary
from .lint_tensorrt import RULES

# Which operators there are, and with what restrictions, the tool that builds says itself: versions differ.
_ASKED = ("unsupported-operator", "operator-use")
_SYMMETRIC = Dialect(name="s8-symmetric", activations="s8", int32_bias=False, pair_after_last=())


@dataclasses.dataclass(frozen=True)
class TensorRT:
    """See `targets.Target`. Its rules: NVIDIA's TensorRT documentation, "Working with quantized types"."""

    name: str = "tensorrt"
    channel_multiple: int = (
        32  # INT8 tensor cores take 32 channels at a time (TensorRT best practices, tensor core usage)
    )

    def dialects(self) -> tuple[Dialect, ...]:
        """The only INT8 that TensorRT 10 and 11 both take: symmetric S8, zero point 0, float bias."""
        return (_SYMMETRIC,)

    def unmeasurable(self) -> str | None:
        """An engine can be built without a GPU, but neither loaded nor run."""
        return "no CUDA device" if cuda_driver.load() is None else tool_problem("auto")

    def write(
        self,
        model: onnx.ModelProto,
        params: Mapping[str, QuantParams] | None,
        dialect: Dialect | None,
        path: Path,
        keep_float: Collection[str] = (),
    ) -> Artifact:
        """See `targets.Target`."""
        return write_artifact(self.name, self.lint, model, params, dialect, path, keep_float)

    def rules(self) -> Mapping[str, Rule]:
        """See `targets.Target`."""
        return RULES

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """See `targets.Target`. Needs no TensorRT: NVIDIA's parser was asked when the rules were written."""
        return check_file(path, RULES)

    def build(self, path: Path, engine: Path, options: Build) -> EngineInfo:
        """Lint the ONNX file at `path` and build `engine` from it.

        Raises:
            BuildError: the lint has found something, or see `engine_build.build`.
        """
        onnx_file.load(path)
        refused = [finding for finding in refusals(self.lint(path)) if finding.rule not in _ASKED]
        if refused:
            raise BuildError(f"{path}: TensorRT refuses it: {summary(refused)}; write it with target '{self.name}'")
        return engine_build.build(path, engine, options)

    def open(self, artifact: Artifact, threads: int) -> Session:
        """See `targets.Target`. The engine beside the file is reused where it fits, else built with the defaults."""
        reason = self.unmeasurable()
        if reason is not None:
            raise MeasurementError(f"{artifact.path}: not measured: {reason}")
        return open_beside(artifact.path)
