"""The table of targets, and what every one of them can do."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import onnx

from ..core.values import Artifact, QuantParams, Session
from .dialect import Dialect
from .lint import Finding, Rule
from .onnxruntime_cpu import OnnxRuntimeCpu
from .tensorrt import TensorRT


class Target(Protocol):
    """One deployable runtime."""

    @property
    def name(self) -> str: ...

    @property
    def channel_multiple(self) -> int:
        """Widths that are multiples of this feed its kernels well."""
        ...

    def dialects(self) -> tuple[Dialect, ...]:
        """INT8 forms worth trying on this machine, the likeliest first."""
        ...

    def unmeasurable(self) -> str | None:
        """Why nothing can be run or timed here, or None."""
        ...

    def write(
        self,
        model: onnx.ModelProto,
        params: Mapping[str, QuantParams] | None,
        dialect: Dialect | None,
        path: Path,
        keep_float: Collection[str] = (),
    ) -> Artifact:
        """Write a canonical graph, in float without `params`, and the nodes in `keep_float` in float in any case.

        What was written has passed `lint`.

        Raises:
            QuantizationError: the target would refuse the file; says which rule and where.
        """
        ...

    def rules(self) -> Mapping[str, Rule]:
        """What can be told from a graph alone: rule id -> rule."""
        ...

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """What the target would refuse in a file, or run wrongly or slowly; empty: nothing."""
        ...

    def open(self, artifact: Artifact, threads: int) -> Session:
        """Load an artefact in the target's runtime.

        Raises:
            MeasurementError: the runtime is not here.
        """
        ...


TARGETS: dict[str, Target] = {
    "onnxruntime-cpu": OnnxRuntimeCpu(),
    "tensorrt": TensorRT(),
}
