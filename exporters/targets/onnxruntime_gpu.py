"""ONNX Runtime's providers for an NVIDIA GPU: its own CUDA kernels, and TensorRT."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from ...core.values import Session
from ..engines import cuda_driver
from ..int8.dialect import Dialect
from ..linting.lint import Rule
from ..linting.lint_onnxruntime import LOADING_RULES
from ..linting.lint_tensorrt import RULES
from ..sessions.ort_session import OnnxRuntimeSession, missing
from .target import Target
from .tensorrt import SYMMETRIC


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeGpu(Target):
    """See `target.Target`.

    The CUDA provider has kernels for Q and DQ but no INT8 convolution: between pairs it computes in float, and a search
    that times it keeps the float file. The TensorRT provider takes what TensorRT takes, and builds its engines as it
    loads a file.
    """

    name: str
    device: Literal["cuda", "tensorrt"]
    channel_multiple: ClassVar[int] = 32  # as for TensorRT; both run on tensor cores

    def dialects(self) -> tuple[Dialect, ...]:
        """What TensorRT takes; the CUDA provider computes the same between any pairs."""
        return (SYMMETRIC,)

    def rules(self) -> Mapping[str, Rule]:
        """See `target.Target`."""
        return RULES if self.device == "tensorrt" else LOADING_RULES

    def unmeasurable(self) -> str | None:
        """Needs a GPU, and a build of ONNX Runtime with the provider."""
        return "no CUDA device" if cuda_driver.load() is None else missing(self.device)

    def _load(self, path: Path, threads: int) -> Session:
        return OnnxRuntimeSession(path, threads, self.device)
