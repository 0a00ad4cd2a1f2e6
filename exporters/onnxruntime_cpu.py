"""ONNX Runtime on this machine's CPU."""

import dataclasses
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import onnx

from ..core.errors import ArtifactError
from ..core.values import Artifact, QuantParams, Session
from . import ort_glue
from .artifact_file import write_artifact
from .dialect import Dialect
from .lint import Finding, Rule, check_file, refusals
from .lint_onnxruntime import RULES, SATURATING_RULES, VNNI_RULES
from .ort_session import OnnxRuntimeSession

# A last Gemm alone runs in INT8 with a float result; everything else is fused only with a Q behind it.
_PAIR_AFTER = ("Conv", "MatMul", "Add", "Concat", "GlobalAveragePool", "AveragePool", "Relu", "Clip")
_X86 = ("x86_64", "AMD64")
_CPU_INFO = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeCpu:
    """See `targets.Target`."""

    name: str = "onnxruntime-cpu"
    channel_multiple: int = (
        8  # kernels work on blocks of 8 or 16 channels; at other widths half the MACs can take longer
    )

    def dialects(self) -> tuple[Dialect, ...]:
        """Unsigned activations on x86, where signed ones run three times slower; both elsewhere. Dynamic ones last."""
        bits = weight_bits()
        unsigned = (
            Dialect(name="u8", activations="u8", int32_bias=True, pair_after_last=_PAIR_AFTER, weight_bits=bits),
            Dialect(
                name="u8-asymmetric",
                activations="u8-asymmetric",
                int32_bias=True,
                pair_after_last=_PAIR_AFTER,
                weight_bits=bits,
            ),
        )
        dynamic = dataclasses.replace(unsigned[0], name="dynamic", dynamic=True)
        if platform.machine() in _X86:
            return (*unsigned, dynamic)
        return (
            *unsigned,
            Dialect(name="s8", activations="s8", int32_bias=True, pair_after_last=_PAIR_AFTER, weight_bits=bits),
            dynamic,
        )

    def unmeasurable(self) -> str | None:
        """ONNX Runtime's CPU provider is always here."""
        return None

    def write(
        self,
        model: onnx.ModelProto,
        params: Mapping[str, QuantParams] | None,
        dialect: Dialect | None,
        path: Path,
        keep_float: Collection[str] = (),
    ) -> Artifact:
        """See `targets.Target`."""
        return write_artifact(self.name, self.lint, model, params, dialect, path, keep_float, ort_glue.rewrite)

    def rules(self) -> Mapping[str, Rule]:
        """See `targets.Target`. What is slow and what saturates hangs on this machine's CPU."""
        if platform.machine() not in _X86:
            return RULES
        return VNNI_RULES if weight_bits() == 8 else SATURATING_RULES

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """See `targets.Target`. Whether ONNX Runtime loads the file is tried."""
        found = check_file(path, self.rules())
        try:
            OnnxRuntimeSession(path).close()
        except ArtifactError as error:
            if not refusals(found):  # else they say better why
                return (*found, Finding(rule="load", problem=str(error), remedy="export it again"))
        return found

    def open(self, artifact: Artifact, threads: int) -> Session:
        """See `targets.Target`."""
        return OnnxRuntimeSession(artifact.path, threads)


def weight_bits(machine: str | None = None, cpu_info: Path = _CPU_INFO) -> Literal[7, 8]:
    """8, or 7 on an x86 CPU without VNNI: there two products are added in 16 bits and saturate."""
    if (machine or platform.machine()) not in _X86:
        return 8
    try:
        return 8 if "vnni" in cpu_info.read_text() else 7
    except OSError:  # not Linux: unknown, so the form that is right on both
        return 7
