"""ONNX Runtime's provider that runs a file in OpenVINO, on this machine's CPU."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ...core.values import Session
from ..int8.dialect import Dialect
from ..linting.lint import Rule
from ..linting.lint_onnxruntime import LOADING_RULES
from ..sessions.ort_session import OnnxRuntimeSession, missing
from .openvino import OpenVino
from .target import Target


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeOpenVino(Target):
    """See `target.Target`. For programs that call ONNX Runtime; the files are those of `openvino`."""

    name: str = "onnxruntime-openvino"
    channel_multiple: ClassVar[int] = OpenVino.channel_multiple

    def dialects(self) -> tuple[Dialect, ...]:
        """OpenVINO's own."""
        return OpenVino().dialects()

    def rules(self) -> Mapping[str, Rule]:
        """See `target.Target`."""
        return LOADING_RULES

    def unmeasurable(self) -> str | None:
        """Needs a build of ONNX Runtime with the provider."""
        return missing("openvino")

    def _load(self, path: Path, threads: int) -> Session:
        return OnnxRuntimeSession(path, threads, "openvino")

    def stand_in(self, path: Path, threads: int) -> Session:
        """The provider itself, or else what computes the same."""
        return OpenVino().stand_in(path, threads) if self.unmeasurable() else self._load(path, threads)
