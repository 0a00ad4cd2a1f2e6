"""Finding, loading and checking the user's task before anything is done with it."""

import dataclasses
import functools
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..benches.metrics import metrics
from ..benches.metrics.accuracy import labels_of
from ..core import digest
from ..core.errors import DataError, EdgesmithError, TaskError
from ..core.task import SPLITS, ArraySplit, Split, Task, has_label
from . import own_code
from .artifacts import MODEL
from .data import calibration_split
from .evaluation import task_metrics
from .model_graph import graph_of
from .run_directory import DONE

_PACKAGE = Path(__file__).parents[1]
_SAMPLED = 256  # samples looked at where a split does not hold its arrays in memory


def load_task(reference: str, folder: Path) -> Task:
    """Run the function that a recipe's `task = "file.py:function"` names.

    Args:
        reference: Python file, relative to `folder`, and the function; without one it is `task`.
        folder: where the recipe is.

    Raises:
        TaskError: no such file or function, it raises, or returns something else.
    """
    file_name, _, function = reference.partition(":")
    path = (folder / file_name).resolve()
    if not path.is_file():
        raise TaskError(f'task = "{reference}": no file {path}')
    module = _import(path)
    name = function or "task"
    make = getattr(module, name, None)
    if not callable(make):
        raise TaskError(f"{path}: no function '{name}'; {_others(module, file_name)}")
    task = _guarded(make, f"{path}: {name}()")
    if not isinstance(task, Task):
        raise TaskError(f"{path}: {name}() must return an edgesmith.Task, it returned {type(task).__name__}")
    return task


def check_data(task: Task) -> None:
    """Look at every split: finite values, the same inputs everywhere.

    Raises:
        DataError: inputs of a type that no runtime takes, NaN or infinity, or splits whose inputs differ from the test
            split's.
        TaskError: a split that raises, or is empty.
    """
    wanted = {spec.name: (spec.dtype, spec.shape[1:]) for spec in task.input_specs()}
    for spec in task.input_specs():
        if np.dtype(spec.dtype).kind not in "fiub":
            raise DataError(
                f"task '{task.name}': input '{spec.name}' is {spec.dtype}, which no runtime here takes; give real "
                "numbers (the parts of complex ones on an axis of their own), integers or booleans"
            )
    names = [MODEL, DONE]
    for path in map(Path, task.files):
        if not path.is_file():
            raise TaskError(f"task '{task.name}': files: no file {path}; it is to be deployed beside the model")
        if path.name in names:
            raise TaskError(
                f"task '{task.name}': files: {path}: another '{path.name}' lies beside the model; give it a name "
                "of its own"
            )
        names.append(path.name)
    for name in SPLITS:
        if getattr(task, name) is None:
            continue
        split = task.split(name, "the task")
        where = f"task '{task.name}': '{name}' split"
        inputs, labels = _guarded(functools.partial(look, split), where)
        for key, array in inputs.items():
            if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
                first = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
                raise DataError(
                    f"{where}: input '{key}' holds NaN or infinity, first in sample {first}; clean the data"
                )
        got = {key: (str(array.dtype), _as_named(key, array.shape[1:], wanted)) for key, array in inputs.items()}
        if not _same_inputs(got, wanted, task):
            raise DataError(
                f"{where}: inputs are {_show(got)}, those of the 'test' split are {_show(wanted)}; they must agree, "
                "and stand in the same order"
            )
        if labels is not None and name == "train":
            labels = labels[has_label(labels)]
        if labels is not None and labels.dtype.kind == "f" and not bool(np.isfinite(labels).all()):
            hint = "; a label that is missing is NaN throughout" if name == "train" else ""
            raise DataError(f"{where}: the labels hold NaN or infinity; clean the data{hint}")
    if task.old is not None:
        _check_old(task, task.old)


def _check_old(task: Task, old: Task) -> None:
    """The old task is one that this task's model can be asked about; what came before it is not looked at."""
    where = f"task '{task.name}': old task '{old.name}'"
    if old.outputs[0] not in task.outputs:
        raise TaskError(
            f"{where}: its first output is '{old.outputs[0]}', and the model gives {', '.join(task.outputs)}; name the "
            "one that answers the old task first in its outputs="
        )
    for name in ("validation", "test"):
        old.split(name, f"{where}, which is measured beside the new one,")
    check_data(dataclasses.replace(old, old=None))
    wanted, got = ({spec.name: (spec.dtype, spec.shape[1:]) for spec in each.input_specs()} for each in (task, old))
    if not _same_inputs(got, wanted, task):
        raise DataError(f"{where}: inputs are {_show(got)}, those of the new one are {_show(wanted)}; they must agree")


def _same_inputs(ours: Mapping[str, Any], theirs: Mapping[str, Any], task: Task) -> bool:
    """In their order too where the model is a module, which is called by position."""
    return list(ours.items()) == list(theirs.items()) if callable(task.model) else ours == theirs


def _as_named(name: str, shape: tuple[int, ...], wanted: dict[str, Any]) -> tuple[int | str, ...]:
    """The shape with the names of dynamic axes, whose length may differ."""
    given = wanted[name][1] if name in wanted and len(wanted[name][1]) == len(shape) else shape
    return tuple(axis if isinstance(axis, str) else size for size, axis in zip(shape, given, strict=True))


def check_outputs(task: Task, outputs: dict[str, np.ndarray]) -> None:
    """Compare what the model returns for a few samples with the labels of every split that is measured.

    Raises:
        DataError: they do not fit; says how.
        TaskError: another number of classes than the task names.
    """
    if task.old is not None:
        check_outputs(dataclasses.replace(task.old, old=None), outputs)
    first = outputs[task.outputs[0]]
    if task.classes and (first.ndim < 2 or first.shape[1] != len(task.classes)):
        raise TaskError(
            f"task '{task.name}': classes= names {len(task.classes)} classes, but the model's output "
            f"'{task.outputs[0]}' is {first.shape} for 4 samples; name one for each column"
        )
    for metric in task_metrics(task):
        output = outputs[metric.output or task.outputs[0]]
        for name in ("validation", "test"):
            split = getattr(task, name)
            if split is None:
                continue
            labels = labels_of(split)
            repeated = np.broadcast_to(output[:1], (len(labels), *output.shape[1:]))
            try:
                metrics.check_outputs(metric, repeated, labels)
            except DataError as error:
                raise DataError(f"task '{task.name}': '{name}' split: {error}") from error


def identity(task: Task) -> str:
    """Digest of what a run depends on: the task's data, its choices, and the source files its functions come from.

    A split that does not hold its arrays in memory is identified by its length and 256 samples spread over it.
    """
    choices: list[Any] = [task.name, _name(task.loss), [_name(metric) for metric in task.metrics], list(task.outputs)]
    choices.append(list(task.classes))
    choices += [] if task.old is None else [identity(task.old)]
    choices += [[name, sorted(axes.items())] for name, axes in sorted(task.dynamic_axes.items())]
    choices += [
        [name, own_code.of_function(each) if callable(each) else digest.of_arrays({name: np.asarray(each)})]
        for name, each in sorted(task.slices.items())
    ]
    choices += [digest.of_json(list(task.texts))] if task.texts else []
    choices += [[Path(path).name, digest.of_file(Path(path))] for path in task.files]
    models = {name: _model_identity(model, task, name) for name, model in task.models.items()}
    functions = [
        _model_identity(task.model, task, "original"),
        *(own_code.of_function(f) for f in (task.load_weights, task.augment, task.loss) if callable(f)),
    ]
    data = {name: split_identity(getattr(task, name)) for name in SPLITS if getattr(task, name) is not None}
    return digest.of_json([choices, models, functions, data])


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"edgesmith_task_{digest.of_bytes(str(path).encode())[:12]}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:  # as for a script: a task may import its neighbours, later too
        sys.path.insert(0, str(path.parent))
    _guarded(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]  # checked above
    return module


def _others(module: Any, file_name: str) -> str:
    """What else `task` in a recipe may name: the file's own functions that need no argument."""
    found = [
        f'"{file_name}:{name}"'
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        if all(each.default is not each.empty for each in inspect.signature(value).parameters.values())
    ]
    there = f": {', '.join(found)}" if found else f' as "{file_name}:function"'
    return f"define it, or name another one{there}"


def _guarded(call: Callable[[], Any], where: str) -> Any:
    """Run the user's code; what it raises is reported with the line of theirs that raised it."""
    try:
        return call()
    except EdgesmithError:
        raise
    except Exception as error:  # anything may come out of a user's function
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _is_users(Path(frame.filename))]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        raise TaskError(f"{where} raised {type(error).__name__}: {error}{place}") from error


def _is_users(path: Path) -> bool:
    """A file of the user's own: not this package, not an installed one, not generated code."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_file() and not installed and not path.is_relative_to(_PACKAGE)


def run_user_code(call: Callable[[], Any], where: str) -> Any:
    """Run a function of the task's.

    Raises:
        TaskError: it raised; names the line.
    """
    return _guarded(call, where)


def look(split: Split) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Inputs and labels of a split that holds them in memory, else of some samples spread over it."""
    if isinstance(split, ArraySplit):
        return dict(split.inputs), split.labels
    return split.batch(_spread(len(split)))


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(np.int64))


def split_identity(split: Split) -> str:
    """Digest of a split's inputs and labels; of its length and 256 samples where it does not hold its arrays."""
    inputs, labels = look(split)
    return digest.of_json(
        [len(split), digest.of_arrays(inputs), None if labels is None else digest.of_arrays({"labels": labels})]
    )


def calibration_identity(task: Task) -> str:
    """Digest of the split that ranges come from; a file says it of itself, see `calibration_note`."""
    return split_identity(task.split(calibration_split(task), "calibration"))


def _model_identity(model: Any, task: Task, name: str) -> str:
    if not callable(model):
        return digest.of_bytes(graph_of(model, task, name).SerializeToString(deterministic=True))
    return own_code.of_function(model)


def _name(choice: Any) -> str:
    return choice if isinstance(choice, str) else str(getattr(choice, "name", getattr(choice, "__name__", "")))


def _show(inputs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype} {tuple(shape)}" for name, (dtype, shape) in inputs.items())
