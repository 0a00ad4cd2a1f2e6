"""ONNX Runtime's CPU provider, on this machine's CPU or on one of another kind."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import onnx

from ...core.errors import ArtifactError
from ...core.values import Arrays, Session
from ..int8 import ort_glue, tables
from ..int8.dialect import Activations, Dialect
from ..linting.lint import Finding, Rule, refusals
from ..linting.lint_onnxruntime import ARM_RULES, RULES, SATURATING_RULES, VNNI_RULES
from ..sessions import ort_kernels
from ..sessions.cpu import Cpu, this_cpu
from ..sessions.layer_kernel import LayerKernel
from ..sessions.ort_session import OnnxRuntimeSession
from ..sessions.saturating_session import SaturatingSession
from .target import Target

# A last Gemm alone runs in INT8 with a float result; everything else is fused only with a Q behind it.
_PAIR_AFTER = ("Conv", "MatMul", "Add", "Concat", "GlobalAveragePool", "AveragePool", "Relu", "Clip")
_ACTIVATIONS: Mapping[Cpu, tuple[Activations, ...]] = {
    "x86-vnni": ("u8", "u8-asymmetric"),  # signed ones run three times slower
    "x86": ("u8", "u8-asymmetric"),
    "arm": ("s8-shifted", "s8-asymmetric", "u8", "u8-asymmetric"),
    "other": ("u8", "u8-asymmetric", "s8"),
}
_RULES: Mapping[Cpu, Mapping[str, Rule]] = {
    "x86-vnni": VNNI_RULES,
    "x86": SATURATING_RULES,
    "arm": ARM_RULES,
    "other": RULES,
}
_CALLED: Mapping[Cpu, str] = {"x86-vnni": "x86-64 with VNNI", "x86": "x86-64", "arm": "Arm"}


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeCpu(Target):
    """See `target.Target`."""

    name: str = "onnxruntime-cpu"
    cpu: Cpu | None = None  # None: this machine's
    channel_multiple: ClassVar[int] = 8  # kernels work on blocks of 8 or 16; else half the MACs can take longer
    profiled: ClassVar[bool] = True

    def dialects(self) -> tuple[Dialect, ...]:
        """The activations that the CPU has kernels for, dynamic ones last; 7-bit weights where products saturate."""
        cpu = self.cpu or this_cpu()
        static = tuple(
            Dialect(
                name=activations,
                activations=activations,
                int32_bias=True,
                pair_after_last=_PAIR_AFTER,
                weight_bits=7 if cpu == "x86" else 8,
            )
            for activations in _ACTIVATIONS[cpu]
        )
        return (*static, dataclasses.replace(static[0], name="dynamic", dynamic=True))

    def rewrite(self, written: onnx.ModelProto, keep_float: Collection[str]) -> None:
        """See `target.Target`."""
        tables.write_tables(written, keep_float)
        ort_glue.rewrite(written)

    def rules(self) -> Mapping[str, Rule]:
        """See `target.Target`. What is slow and what saturates hangs on the CPU."""
        return _RULES[self.cpu or this_cpu()]

    def kernels(
        self, path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays], threads: int, seconds: float
    ) -> Sequence[LayerKernel]:
        """See `target.Target`."""
        return ort_kernels.kernels(path, model, feeds, threads, seconds)

    def unmeasurable(self) -> str | None:
        """ONNX Runtime's CPU provider is always here; the CPU may be another one."""
        here = this_cpu()
        if self.cpu in (None, here):
            return None
        if self.cpu == "x86" and here == "x86-vnni":
            return "this CPU has VNNI; how it saturates without is emulated, how fast it is cannot be told"
        return f"this CPU is not {_CALLED[self.cpu or here]}"

    def _load(self, path: Path, threads: int) -> Session:
        return OnnxRuntimeSession(path, threads)

    def stand_in(self, path: Path, threads: int) -> Session:
        """Integers are the same on every CPU, but where they saturate."""
        if self.cpu in (None, this_cpu()):
            return self._load(path, threads)
        if self.cpu == "x86":
            return SaturatingSession(path)
        return super().stand_in(path, threads)

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """See `target.Target`. Whether ONNX Runtime loads the file is tried."""
        found = super().lint(path)
        try:
            OnnxRuntimeSession(path).close()
        except ArtifactError as error:
            if not refusals(found):  # else they say better why
                return (*found, Finding(rule="load", problem=str(error), remedy="export it again"))
        return found
