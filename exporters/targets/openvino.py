"""OpenVINO on this machine's CPU; the artefact is the ONNX file."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import onnx

from ...core.errors import ArtifactError
from ...core.values import Arrays, Session
from ..graph import onnx_file
from ..graph.graph_view import views
from ..int8.dialect import Activations, Dialect
from ..linting.lint import Finding, Rule, at, refusals
from ..linting.lint_onnxruntime import LOADING_RULES
from ..sessions import openvino_kernels
from ..sessions.cpu import this_cpu
from ..sessions.layer_kernel import LayerKernel
from ..sessions.openvino_session import OpenVinoSession
from ..sessions.ort_session import OnnxRuntimeSession
from .target import Target

_ACTIVATIONS: tuple[Activations, ...] = ("u8", "u8-asymmetric", "s8")
_MISSING = 'openvino is not installed: pip install "edgesmith[openvino]"'


@dataclasses.dataclass(frozen=True)
class OpenVino(Target):
    """See `target.Target`."""

    name: str = "openvino"
    channel_multiple: ClassVar[int] = 16  # oneDNN's kernels work on blocks of 16 channels
    profiled: ClassVar[bool] = True

    def dialects(self) -> tuple[Dialect, ...]:
        """It takes any zero point; products saturate without VNNI as they do elsewhere."""
        saturates = this_cpu() == "x86"
        return tuple(
            Dialect(
                name=name,
                activations=name,
                int32_bias=False,
                pair_after_last=(),
                float_results=True,  # else a GELU behind a convolution would not become part of its kernel
                weight_bits=7 if saturates else 8,
                transposed=this_cpu() == "x86-vnni",  # without, oneDNN has no INT8 kernel for them
            )
            for name in _ACTIVATIONS
        )

    def rules(self) -> Mapping[str, Rule]:
        """See `target.Target`. What else it would refuse or run in float, it is asked: see `lint`."""
        return LOADING_RULES

    def kernels(
        self, path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays], threads: int, seconds: float
    ) -> Sequence[LayerKernel]:
        """See `target.Target`."""
        return openvino_kernels.kernels(path, model, feeds, threads, seconds)

    def unmeasurable(self) -> str | None:
        """Whether it is installed."""
        return None if find_spec("openvino") else _MISSING

    def _load(self, path: Path, threads: int) -> Session:
        return OpenVinoSession(path, threads)

    def stand_in(self, path: Path, threads: int) -> Session:
        """OpenVINO itself, where it is installed."""
        return OnnxRuntimeSession(path, threads) if self.unmeasurable() else self._load(path, threads)

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """See `target.Target`. Where OpenVINO is installed it is asked to load the file, and what it runs in float."""
        found = super().lint(path)
        if refusals(found) or self.unmeasurable():
            return found
        try:
            session = OpenVinoSession(path)
        except ArtifactError as error:
            return (*found, Finding(rule="load", problem=str(error), remedy="export it again"))
        try:
            return (*found, *_in_float(path, session))
        finally:
            session.close()


def _in_float(path: Path, session: OpenVinoSession) -> Iterator[Finding]:
    """Nodes between Q/DQ pairs that OpenVINO's execution graph has in another precision than 8 bits."""
    model = onnx_file.load(path)
    run = openvino_kernels.multiplying(session, model)
    for view in views(model):
        for node in view.nodes:
            if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or not view.main:
                continue
            kernel = run.get(node.output[0])
            pairs = all(view.producer(view.input(node, index), "DequantizeLinear") for index in (0, 1))
            if pairs and kernel is not None and kernel.precision not in ("u8", "i8"):
                problem = f"stands between pairs, and OpenVINO runs it in {kernel.precision} ({kernel.operator})"
                yield at(node, "runs-in-float", problem, "keep it in float: its pairs cost time", "slow")
