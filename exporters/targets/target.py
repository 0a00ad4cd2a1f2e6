"""What every deployable runtime can do."""

import abc
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import onnx

from ...core import digest
from ...core.errors import MeasurementError, QuantizationError
from ...core.values import Arrays, Artifact, QuantParams, Session
from ..graph.onnx_file import save, specs
from ..int8.dialect import Dialect
from ..int8.dynamic import write_int8
from ..linting.lint import Finding, Rule, check_file, refusals, summary
from ..sessions.layer_kernel import LayerKernel
from ..sessions.ort_session import OnnxRuntimeSession


class Target(abc.ABC):
    """One deployable runtime: what its INT8 looks like, what it refuses, and how it runs a file."""

    name: str
    channel_multiple: ClassVar[int]  # widths that are multiples of this feed its kernels well
    profiled: ClassVar[bool] = False  # whether `kernels` tells how long its layers take

    @abc.abstractmethod
    def dialects(self) -> tuple[Dialect, ...]:
        """INT8 forms worth trying on this machine, the likeliest first."""

    @abc.abstractmethod
    def rules(self) -> Mapping[str, Rule]:
        """What can be told from a graph alone: rule id -> rule."""

    @abc.abstractmethod
    def unmeasurable(self) -> str | None:
        """Why nothing can be run or timed here, or None."""

    @abc.abstractmethod
    def _load(self, path: Path, threads: int) -> Session:
        """Load a file in the runtime; called only where there is nothing against it."""

    def stand_in(self, path: Path, threads: int) -> Session:
        """A session with the target's numbers, or close to them, that needs neither its hardware nor an engine.

        Choices are made with it, and a target that is not here is judged by it.
        """
        return OnnxRuntimeSession(path, threads, exact=True)

    def kernels(
        self, path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays], threads: int, seconds: float
    ) -> Sequence[LayerKernel]:
        """How long each kernel of a file takes, where `profiled`; see `ort_kernels.kernels`."""
        raise MeasurementError(f"target '{self.name}' does not tell how long its layers take")

    @property
    def transposed(self) -> bool:
        """Whether it has INT8 kernels for transposed convolutions."""
        return any(dialect.transposed for dialect in self.dialects())

    def rewrite(self, written: onnx.ModelProto, keep_float: Collection[str]) -> None:  # noqa: B027  # most leave it
        """Change an INT8 graph in place to what the target runs fastest; nodes in `keep_float` stay in float."""

    def lint(self, path: Path) -> tuple[Finding, ...]:
        """What the target would refuse in a file, or run wrongly or slowly; empty: nothing."""
        return check_file(path, self.rules())

    def open(self, path: Path, threads: int) -> Session:
        """Load a file in the target's runtime.

        Raises:
            MeasurementError: the runtime is not here.
        """
        reason = self.unmeasurable()
        if reason is not None:
            raise MeasurementError(f"{path}: not measured: {reason}")
        return self._load(path, threads)

    def write(
        self,
        model: onnx.ModelProto,
        params: Mapping[str, QuantParams] | None,
        dialect: Dialect | None,
        path: Path,
        keep_float: Collection[str] = (),
    ) -> Artifact:
        """Write a canonical graph, in float without `params`, and the nodes in `keep_float` in float in any case.

        What was written has passed `lint`; a file that has not does not stay.

        Raises:
            QuantizationError: the target would refuse the file; says which rule and where.
        """
        if params is not None and dialect is None:
            raise QuantizationError(f"target '{self.name}': INT8 needs a dialect")
        written = model
        if params is not None and dialect is not None:
            written = write_int8(model, params, dialect, keep_float)
            self.rewrite(written, keep_float)
        save(written, path)
        refused = refusals(self.lint(path))
        if refused:
            path.unlink()
            raise QuantizationError(f"target '{self.name}' would refuse the file: {summary(refused)}")
        inputs, outputs = specs(written)
        return Artifact(
            path=path,
            target=self.name,
            dialect="float" if params is None or dialect is None else dialect.name,
            precision="float32" if params is None else "int8",
            inputs=inputs,
            outputs=outputs,
            digest=digest.of_file(path),
        )
