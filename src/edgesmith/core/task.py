"""The user's problem: a model, data, a loss and the metrics that count."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .errors import DataError, TaskError
from .values import Arrays, TensorSpec

SPLITS = ("train", "validation", "test", "calibration", "unlabelled")
NO_LABEL = -100  # among integer labels of `train`: this one is missing (torch's `ignore_index`); among real ones NaN


def has_label(labels: np.ndarray) -> np.ndarray:
    """Which samples of `(N, ...)` have a label: one that is not all NaN, nor all `NO_LABEL`; bool `(N,)`."""
    rows = labels.reshape(len(labels), -1)
    missing = np.isnan(rows) if rows.dtype.kind == "f" else rows == NO_LABEL
    return np.asarray(~missing.all(1))


class Estimator(Protocol):
    """A fitted model of scikit-learn's kind; it becomes an ONNX graph through skl2onnx."""

    def fit(self, X: Any, y: Any) -> Any: ...

    def predict(self, X: Any) -> Any: ...

    def get_params(self, deep: bool = True) -> dict[str, Any]: ...


class Split(Protocol):
    """Samples that can be fetched by index; arrays come as `(batch, ...)`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Inputs by name and the labels (None where there are none) of the samples at `indices`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split held in memory: input name -> array `(N, ...)`, labels `(N, ...)` or None.

    Raises:
        DataError: something else than numpy arrays, or arrays of different lengths.
    """

    inputs: Arrays
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        arrays = {**self.inputs} if self.labels is None else {**self.inputs, "labels": self.labels}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.ndim == 0:
                kind = type(array).__qualname__
                kind = kind if type(array).__module__ == "builtins" else f"{type(array).__module__}.{kind}"
                kind += " without axes" if isinstance(array, np.ndarray) else ""
                raise DataError(f"ArraySplit: '{name}' is a {kind}; give a numpy array with the samples on axis 0")
        lengths = {name: len(array) for name, array in arrays.items()}
        if not self.inputs or len(set(lengths.values())) != 1:
            raise DataError(f"ArraySplit: every array needs the same number of samples on axis 0, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        labels = None if self.labels is None else self.labels[indices]
        return {name: array[indices] for name, array in self.inputs.items()}, labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A number the task is judged by, built from one row of scores per sample so that two models can be paired.

    The metric's value is `reduce(scores)`; without `reduce` it is the mean over samples. `proportion` scores are 0 or 1
    and get an exact kind of interval; a `reduce` of its own (mIoU, F1) gets a bootstrap interval over samples.
    """

    name: str
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (output (N, ...), labels (N, ...)) -> (N,) or (N, K)
    higher_is_better: bool = True
    kind: Literal["proportion", "mean", "statistic"] = "mean"
    reduce: Callable[[np.ndarray], float] | None = None  # only with kind "statistic"
    output: str | None = None  # name of the output it reads; None: the first
    bounds: tuple[float, float] = (-math.inf, math.inf)  # what its value can be; an interval does not go beyond
    misfit: Callable[[np.ndarray, np.ndarray], str] | None = None  # (output, labels) -> what does not fit, or ""
    samplewise: bool = False  # a sample's scores are its own, whatever others are there: outputs need not be held


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What has to be solved. One Python file with one function returns it.

    A model is an architecture (a function without arguments that builds a `torch.nn.Module`) and weights, kept apart
    so that a pruned model can be rebuilt without pickle; or the path of an ONNX file, or a fitted scikit-learn
    estimator, where no stage trains or prunes.
    """

    name: str
    model: Callable[[], Any] | str | Path | Estimator
    test: Split  # read once, at the end, for original and final
    load_weights: Callable[[Any], None] | None = None  # loads or trains in place; None: the factory's module is trained
    train: Split | None = None
    validation: Split | None = None  # every choice is made here
    calibration: Split | None = None  # labels are not used; None: drawn from `train`
    unlabelled: Split | None = None
    loss: str | Callable[[Any, Any], Any] = "cross-entropy"  # name, or (output tensor, labels tensor) -> scalar tensor
    metrics: tuple[str | Metric, ...] = ("accuracy",)  # the first is the main one
    outputs: tuple[str, ...] = ("output",)
    classes: tuple[str, ...] = ()  # names in the order of the first output's columns; for reports and for fusing models
    # Input -> axis -> its name: axes beside the batch whose length may change, as the tokens of a text do.
    dynamic_axes: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)
    # Groups of test samples none of which may lose more than `slice_drop`: bool `(N,)`, or a function of the inputs by
    # name and the labels of a batch that gives it.
    slices: Mapping[str, np.ndarray | Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    files: tuple[Path, ...] = ()  # what is deployed beside the model, such as its tokenizer.json; copied as it is
    # The test split as texts, in its order, and what makes inputs of texts: an audit makes typing errors in them.
    texts: Sequence[str] = ()
    encode: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None
    augment: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None  # (inputs, torch.Generator) -> inputs
    # Teachers, students and members of a fusion by name.
    models: Mapping[str, Callable[[], Any] | str | Path | Estimator] = dataclasses.field(default_factory=dict)
    # What the model is still to be good at: measured beside this task; its first output is one of the model's.
    old: Task | None = None

    def __post_init__(self) -> None:
        # Arrays and columns of tables do too: of these nobody can ask whether they are empty, nor for the first one.
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        object.__setattr__(self, "texts", tuple(self.texts))

    def split(self, name: str, needed_by: str) -> Split:
        """The split called `name`.

        Raises:
            TaskError: the task has no such split, or it is empty.
        """
        found: Split | None = getattr(self, name)
        if found is None:
            raise TaskError(f"task '{self.name}': {needed_by} needs the '{name}' split; set {name}= in the task")
        if len(found) == 0:
            raise TaskError(f"task '{self.name}': the '{name}' split is empty, and {needed_by} needs it")
        return found

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """Inputs as the test split feeds them, with a dynamic batch axis and those of `dynamic_axes`.

        Raises:
            TaskError: the test split is empty, or `dynamic_axes` names what its inputs do not have.
        """
        inputs, _ = self.split("test", "the shape of the inputs").batch(np.arange(1))
        for name, axes in self.dynamic_axes.items():
            known = range(1, inputs[name].ndim) if name in inputs else range(0)
            if not axes or not set(axes) <= set(known):
                has = f"has the axes 1 to {known[-1]}" if known else f"is none of {', '.join(inputs)}"
                raise TaskError(f"task '{self.name}': dynamic_axes: input '{name}' {has}; {dict(axes)} is asked for")
        return tuple(
            TensorSpec(
                name=name,
                dtype=str(array.dtype),
                shape=(
                    "batch",
                    *(self.dynamic_axes.get(name, {}).get(i, array.shape[i]) for i in range(1, array.ndim)),
                ),
            )
            for name, array in inputs.items()
        )
