"""What a torch module takes and returns, found by running it on the user's own samples."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...core.errors import DataError, TaskError
from ...core.task import NO_LABEL
from ..task_file import run_user_code
from .starter_data import Data

Problem = Literal["classes", "dense", "numbers"]
_TRIED = 4  # samples the module is run on
_WANTED = {
    "classes": "(N, classes) for integer labels (N,)",
    "dense": "(N, classes, ...) for integer labels (N, ...)",
    "numbers": "the shape of the labels for floating labels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """One input of the model, in the order it is passed."""

    name: str
    key: str  # name of its array in the data
    cast: str = ""  # numpy type the generated task casts it to; empty: as it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probed:
    """How the generated task calls the model and reads its answer."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]  # the judged one first
    problem: Problem
    keywords: bool = False  # the model has to be called by keyword
    pick: str = ""  # what is read from its answer, as Python: ".logits", "[1]"; empty: the answer as it is
    label_shape: tuple[int, ...] | None = None  # what labels are reshaped to behind the batch axis, if they must be

    @property
    def wrapped(self) -> bool:
        """The model needs a small module around it."""
        return self.keywords or bool(self.pick)


def probe(module: nn.Module, data: Data, what: str) -> Probed:
    """Match arrays with the parameters of `forward`, run a few samples, and find the output that fits the labels.

    Raises:
        DataError: no labels; arrays or labels that do not fit the model.
        TaskError: the model raises on the data, or returns no tensors.
    """
    kind = data.label_kind()
    if kind == "none":
        raise DataError(
            f"{data.path}: no array 'labels': {what} is judged, and taught, by labels; add labels=... to np.savez"
        )
    inputs, keywords = match(module, data, what)
    answer = _run(module, data, inputs, keywords, what)
    outputs, pick, shape = _read(answer, data, kind, what)
    label_shape = reshaped(data, shape)
    return Probed(inputs=inputs, outputs=outputs, problem=kind, keywords=keywords, pick=pick, label_shape=label_shape)


def match(module: nn.Module, data: Data, what: str) -> tuple[tuple[Input, ...], bool]:
    """The inputs in the order of `forward`, and whether they have to be passed by keyword.

    Raises:
        DataError: names that do not fit; says which.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names, required = [p.name for p in named], [p.name for p in named if p.default is p.empty]
    keys = list(data.inputs)
    if set(keys) <= set(names) and set(required) <= set(keys):
        ordered = [name for name in names if name in keys]
        keyword_only = any(p.kind is p.KEYWORD_ONLY for p in named if p.name in keys)
        return tuple(_input(module, data, key) for key in ordered), keyword_only or ordered != names[: len(ordered)]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if (len(keys) == 1 and len(required) <= 1 and (names or takes_any)) or (takes_any and not required):
        return tuple(_input(module, data, key) for key in keys), False
    optional = [name for name in names if name not in required]
    raise DataError(
        f"{data.path}: has the inputs {', '.join(keys)}, but forward() of {what} takes {', '.join(required) or 'none'}"
        + (f" (and may take {', '.join(optional)})" if optional else "")
        + "; give each array the name of its parameter"
    )


def judged(parts: Mapping[str, torch.Tensor], data: Data, kind: Problem, what: str) -> str:
    """Name of the output that fits the labels; of several for classes the narrowest, as features are wider than scores.

    Raises:
        DataError: none does.
    """
    fitting = [name for name, tensor in parts.items() if _fits(tensor, data, kind)]
    if fitting:
        return fitting[0] if kind == "numbers" else min(fitting, key=lambda name: parts[name].shape[1])
    assert data.labels is not None
    shapes = ", ".join(f"{name or 'output'} {tuple(tensor.shape)}" for name, tensor in parts.items())
    raise DataError(
        f"{data.path}: no output of {what} fits the labels ({data.labels.dtype} {data.labels.shape}"
        f"{_class_range(data, kind)}): for {_TRIED} samples it returns {shapes}; wanted is {_WANTED[kind]}"
    )


def reshaped(data: Data, output: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of a sample's label where it differs from the output's: `(N,)` against `(N, 1)` would broadcast."""
    assert data.labels is not None
    if data.column:
        return ()
    same = data.labels.dtype.kind != "f" or data.labels.shape[1:] == output[1:]
    return None if same else output[1:]


def cast_for(array: np.ndarray, wanted: str) -> str:
    """The type an array is cast to without loss of meaning, or an empty string: never from bytes to floats."""
    have = array.dtype
    if str(have) == wanted or have == np.uint8 or have.kind == "b":
        return ""
    return wanted if have.kind == np.dtype(wanted).kind else ""


def _input(module: nn.Module, data: Data, key: str) -> Input:
    array = data.inputs[key]
    floats = [p.dtype for p in module.parameters() if p.is_floating_point()]
    wanted = "int64" if array.dtype.kind in "iu" else str(floats[0]).removeprefix("torch.") if floats else "float32"
    return Input(name=key, key=key, cast="" if wanted == "bfloat16" else cast_for(array, wanted))


def _run(module: nn.Module, data: Data, inputs: Sequence[Input], keywords: bool, what: str) -> Any:
    arrays = {i.name: data.inputs[i.key][:_TRIED].astype(i.cast or data.inputs[i.key].dtype) for i in inputs}
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    shown = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
    module.eval()

    def call() -> Any:
        with torch.no_grad():
            return module(**tensors) if keywords else module(*tensors.values())

    return run_user_code(call, f"{what}: forward() on samples of {data.path} ({shown})")


def _read(answer: Any, data: Data, kind: Problem, what: str) -> tuple[tuple[str, ...], str, tuple[int, ...]]:
    """Names of the outputs, how the judged one is picked from the answer, and its shape."""
    parts = _parts(answer)
    if not parts:
        raise TaskError(f"{what}: forward() returned {type(answer).__name__}, in which there is no tensor")
    turned = _turned(parts, data, kind, what)
    chosen = judged({**parts, **turned}, data, kind, what)
    shape = tuple({**parts, **turned}[chosen].shape)
    plain = "prediction" if kind == "numbers" else "logits"
    turn = ".movedim(-1, 1)" if chosen in turned else ""
    if isinstance(answer, torch.Tensor):
        return (plain,), turn, shape
    if isinstance(answer, (tuple, list)):
        return (plain,), "" if len(answer) == 1 and not turn else chosen + turn, shape
    if isinstance(answer, Mapping) and not hasattr(answer, chosen):
        if turn:
            return (chosen,), f'["{chosen}"]{turn}', shape
        others = [name for name, tensor in parts.items() if tensor.ndim > 0 and len(tensor) == shape[0]]
        return (chosen, *(name for name in others if name != chosen)), "", shape
    return (chosen,), f".{chosen}{turn}", shape


def _turned(parts: Mapping[str, torch.Tensor], data: Data, kind: Problem, what: str) -> dict[str, torch.Tensor]:
    """Outputs whose classes stand last, `(N, positions, classes)`, with these on axis 1.

    Where there are as many positions as classes either axis would do: transformers' token classifiers have them last.
    """
    if kind != "dense":
        return {}
    known = "TokenClassification" in what
    moved = {name: part.movedim(-1, 1) for name, part in parts.items() if part.ndim > 2}
    return {
        name: part
        for name, part in moved.items()
        if _fits(part, data, kind) and (known or not _fits(parts[name], data, kind))
    }


def _parts(answer: Any) -> dict[str, torch.Tensor]:
    """The tensors of an answer by name: a tensor, a tuple, a mapping or a dataclass."""
    if isinstance(answer, torch.Tensor):
        return {"": answer}
    if isinstance(answer, Mapping):
        items = {str(name): value for name, value in answer.items()}
    elif isinstance(answer, (tuple, list)):
        items = {f"[{index}]": value for index, value in enumerate(answer)}
    elif dataclasses.is_dataclass(answer):
        items = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    else:
        return {}
    return {name: value for name, value in items.items() if isinstance(value, torch.Tensor)}


def _fits(output: torch.Tensor, data: Data, kind: Problem) -> bool:
    labels = data.labels
    assert labels is not None
    if not output.is_floating_point() or output.ndim == 0 or len(output) != min(_TRIED, len(data)):
        return False
    if kind == "numbers":
        return _aligned(tuple(output.shape[1:])) == _aligned(labels.shape[1:])
    rank, positions = (2, ()) if kind == "classes" else (labels.ndim + 1, labels.shape[1:])
    fits = output.ndim == rank and tuple(output.shape[2:]) == positions
    lowest, highest = _ends(labels, kind)
    return fits and output.shape[1] > max(1, highest) and lowest >= 0


def _aligned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if shape == (1,) else shape


def _class_range(data: Data, kind: Problem) -> str:
    assert data.labels is not None
    lowest, highest = (0, 0) if kind == "numbers" else _ends(data.labels, kind)
    return "" if kind == "numbers" else f", classes {lowest} to {highest}"


def _ends(labels: np.ndarray, kind: Problem) -> tuple[int, int]:
    """The smallest and the largest class; a position may have none."""
    known = labels[labels != NO_LABEL] if kind == "dense" else labels
    return (int(known.min()), int(known.max())) if known.size else (0, 0)
