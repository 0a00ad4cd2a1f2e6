"""TensorRT: an ONNX file with explicit Q/DQ, and the engine that is built from it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ...core.errors import BuildError
from ...core.values import Session
from ..engines import cuda_driver, engine_build
from ..engines.engine_file import EngineInfo
from ..engines.engine_open import open_beside
from ..engines.engine_options import Build, tool_problem
from ..graph import onnx_file
from ..int8.dialect import Dialect
from ..linting.lint import Rule, refusals, summary
from ..linting.lint_tensorrt import RULES
from .target import Target

# Which operators there are, and with what restrictions, the tool that builds says itself: versions differ.
_ASKED = ("unsupported-operator", "operator-use")
SYMMETRIC = Dialect(name="s8-symmetric", activations="s8", int32_bias=False, pair_after_last=(), transposed=True)


@dataclasses.dataclass(frozen=True)
class TensorRT(Target):
    """See `target.Target`. Its rules: NVIDIA's TensorRT documentation, "Working with quantized types"."""

    name: str = "tensorrt"
    # INT8 tensor cores take 32 channels at a time (TensorRT best practices, tensor core usage).
    channel_multiple: ClassVar[int] = 32

    def dialects(self) -> tuple[Dialect, ...]:
        """The only INT8 that TensorRT 10 and 11 both take: symmetric S8, zero point 0, float bias."""
        return (SYMMETRIC,)

    def unmeasurable(self) -> str | None:
        """An engine can be built without a GPU, but neither loaded nor run."""
        return "no CUDA device" if cuda_driver.load() is None else tool_problem("auto")

    def rules(self) -> Mapping[str, Rule]:
        """See `target.Target`. Need no TensorRT: NVIDIA's parser was asked when they were written."""
        return RULES

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

    def _load(self, path: Path, threads: int) -> Session:
        """The engine beside the file is reused where it fits, else built with the defaults."""
        return open_beside(path)
