"""Small value classes that stages, targets and measurements hand to each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, Mapping, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, element type and shape of a model's input or output; a string stands for a dynamic axis."""

    name: str
    dtype: str  # numpy name: "float32", "int64"
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the confidence interval around it: `low <= value <= high`."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuantParams:
    """How one tensor maps to integers: `real = scale * (integer - zero_point)`.

    Kept free of any runtime's dialect: `scale` and the range say what calibration found, a target's dialect decides
    the integer type and the zero point that stand in its file.
    """

    low: float  # smallest real value that must be representable (activations; per-channel weights: -max|w|)
    high: float  # largest real value that must be representable
    scale: np.ndarray  # (), or (channels,) along `axis`; symmetric: max(|low|, |high|) / (2 ** (bits - 1) - 1)
    zero_point: int = 0
    axis: int | None = None  # None: one scale for the whole tensor
    bits: int = 8
    origin: str = ""  # the rule that made it: "entropy", "weight max"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model file as one target runs it."""

    path: Path
    target: str  # name in exporters.targets.TARGETS
    dialect: str  # how INT8 is written in it, or "float"
    precision: Literal["float32", "int8"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str  # SHA-256 of the file

    @property
    def file_bytes(self) -> int:
        """Size on disk in bytes."""
        return self.path.stat().st_size


class Session(Protocol):
    """A model that runs: one loaded artefact, or a torch module. Accuracy, parity, timing and teachers all use it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """Run one batch: input name -> array `(batch, ...)`; returns output name -> array `(batch, ...)`."""
        ...

    def close(self) -> None:
        """Give memory and threads back. Running afterwards is an error."""
        ...
