"""What stands behind `edgesmith inspect MODEL`: an ONNX file, a task, a recipe, a stage of a run, or a class."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..benches.metrics.layer_closeness import layer_closeness
from ..benches.report.inspection import Group, Inspection, Layer, inspect_onnx
from ..core.errors import TaskError, UsageError
from ..core.task import Task
from ..core.values import TensorSpec
from . import recipe as recipes, task_file
from .candidate import Candidate
from .data import any_inputs
from .int8 import runs
from .pruning import dry_run, open_attention
from .starter import starter_data, starter_import, starter_probe
from .structure import counted

Example = Mapping[str, torch.Tensor]
_KNOWN = (
    "give an ONNX file, a task.py, a recipe.toml, a stage's model.safetensors in a run directory, "
    "or MODULE:CLASS with --data"
)


def inspect(reference: str, data: Path | None = None, against: Path | None = None) -> Inspection:
    """Look at a model from the inside; nothing is trained, and no weight is changed.

    Args:
        reference: see the module's docstring.
        data: .npz file whose arrays are fed to a class, or to an ONNX file and its original; everything else brings
            its own.
        against: the float ONNX file that an INT8 one was made from; every layer is compared with its own there.

    Raises:
        UsageError: it cannot be read, or is nothing of the kind.
    """
    path = Path(reference)
    is_class = ":" in reference and not path.exists()
    if against is not None:
        return _beside(path, against, data)
    if data is not None and not is_class:
        raise TaskError(f"--data {data}: only MODULE:CLASS needs it; {reference} brings its own")
    if path.suffix == ".onnx":
        return inspect_onnx(path)
    if path.suffix == ".toml":
        recipe = recipes.load(path)
        return _of_task(reference, task_file.load_task(recipe.task, recipe.folder))
    if path.name == "model.safetensors" and path.is_file():
        return _of_stage(path)
    if path.suffix == ".py" or (is_class and data is None and path.with_suffix(".py").exists()):
        return _of_task(reference, task_file.load_task(path.name, path.parent))
    if is_class:
        return _of_class(reference, data)
    raise TaskError(f"{reference}: {'not a model that is known' if path.exists() else 'no such file'}; {_KNOWN}")


def inspect_module(name: str, module: nn.Module, example: Example, outputs: tuple[str, ...]) -> Inspection:
    """Layers, sizes and coupled channels of a module.

    Args:
        name: for the heading.
        module: its forward takes the tensors of `example` by position.
        example: input name -> tensor `(batch, ...)`.
        outputs: names for what it returns; none: they are numbered.
    """
    module = module.eval()
    one = {key: tensor[:1] for key, tensor in example.items()}
    layers, total, results = _layers(module, one)
    trial = copy.deepcopy(module)
    for attention in open_attention.find(trial):
        open_attention.opened(trial, attention)
    found, refused = dry_run.prunable(trial, example)
    groups = [
        Group(
            root=group.root,
            channels=group.channels,
            rows=group.layout.size,
            layers=group.layers,
            refused=refused.get(group.root, ""),
        )
        for group in found
    ]
    names = outputs or tuple(f"output {index}" if len(results) > 1 else "output" for index in range(len(results)))
    return Inspection(
        model=name,
        kind="torch",
        inputs=tuple(_spec(key, tensor) for key, tensor in example.items()),
        outputs=tuple(_spec(key, tensor) for key, tensor in zip(names, results, strict=False)),
        layers=tuple(layers),
        macs=total,
        params=sum(parameter.numel() for parameter in module.parameters()),
        groups=tuple(groups),
    )


def _layers(module: nn.Module, one: Example) -> tuple[list[Layer], int, list[torch.Tensor]]:
    """Leaf modules in the order they first run, all multiply-accumulates, and the outputs."""
    leaves = {name: leaf for name, leaf in module.named_modules() if name and not any(leaf.children())}
    shapes: dict[str, tuple[int, ...] | None] = {}
    hooks = [leaf.register_forward_hook(_note(name, shapes)) for name, leaf in leaves.items()]
    try:
        counter, result = counted(module, one)
    finally:
        for hook in hooks:
            hook.remove()
    counts, root = counter.get_flop_counts(), type(module).__name__
    layers = [
        Layer(
            name=name,
            kind=type(leaves[name]).__name__,
            shape=shape,
            macs=sum(counts.get(f"{root}.{name}", {}).values()) // 2,
            params=sum(parameter.numel() for parameter in leaves[name].parameters()),
        )
        for name, shape in shapes.items()
    ]
    total = counter.get_total_flops() // 2
    outside = total - sum(layer.macs or 0 for layer in layers)
    if outside > 0:  # attention is a function, not a layer
        layers.append(Layer(name="(between layers)", kind="functions", shape=None, macs=outside, params=0))
    leaves_of = torch.utils._pytree.tree_leaves(result)
    return layers, total, [leaf for leaf in leaves_of if isinstance(leaf, torch.Tensor)]


def _note(name: str, shapes: dict[str, tuple[int, ...] | None]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        shapes.setdefault(name, tuple(output.shape) if isinstance(output, torch.Tensor) else None)

    return hook


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=("batch", *tensor.shape[1:]))


def _beside(path: Path, original: Path, data: Path | None) -> Inspection:
    if path.suffix != ".onnx" or original.suffix != ".onnx":
        raise UsageError(f"--against {original}: compares two ONNX files, not {path}")
    if data is None:
        raise UsageError(f"--against {original}: both files run on real inputs; give them with --data")
    found = inspect_onnx(path)
    feeds = runs.from_file(data, found.inputs).calibration.feeds
    return dataclasses.replace(found, closeness=layer_closeness(original, path, feeds))


def _of_task(reference: str, task: Task) -> Inspection:
    if not callable(task.model):
        if not isinstance(task.model, (str, Path)):
            raise TaskError(f"{reference}: the model is an estimator; inspect what a run made of it: 00-original")
        return inspect_onnx(Path(task.model))
    module = task_file.run_user_code(task.model, f"task '{task.name}': model")
    return _guarded(reference, module, _example(task), task.outputs)


def _of_stage(path: Path) -> Inspection:
    """A stage of a run: the class comes from the task that the run's recipe names."""
    recipe_path = path.parent.parent.parent / "recipe.toml"
    if not recipe_path.is_file():
        raise TaskError(f"{path}: weights alone hold no architecture, and there is no {recipe_path}; {_KNOWN}")
    recipe = recipes.load(recipe_path)
    task = task_file.load_task(recipe.task, recipe.folder)
    name = _model_of(path.parent)
    factory = task.model if name == "original" else task.models.get(name)
    if not callable(factory):
        raise TaskError(f"{path}: the task has no model '{name}' to build it from")
    candidate = Candidate.load(path, factory, _example(task))
    return _guarded(str(path), candidate.module(), candidate.example, task.outputs)


def _model_of(folder: Path) -> str:
    """Which of the task's models a stage's weights belong to, as the run wrote it down."""
    if folder.name.startswith("model-"):
        return folder.name.removeprefix("model-")
    try:
        facts = json.loads((folder / "done.json").read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder}: not a finished stage of a run: {error}") from error
    return str(facts.get("model") or "original")


def _of_class(reference: str, data: Path | None) -> Inspection:
    architecture = starter_import.find(reference)
    arrays = starter_data.read(data, None, reference)
    module = architecture.build()
    inputs, keywords = starter_probe.match(module, arrays, reference)
    if keywords:
        raise TaskError(f"{reference}: forward() takes its inputs by keyword; inspect the task that init writes for it")
    cast = {i.name: arrays.inputs[i.key][:2].astype(i.cast or arrays.inputs[i.key].dtype) for i in inputs}
    return _guarded(reference, module, {name: torch.tensor(array) for name, array in cast.items()}, ())


def _guarded(reference: str, module: nn.Module, example: Example, outputs: tuple[str, ...]) -> Inspection:
    return task_file.run_user_code(  # type: ignore[no-any-return]  # it returns what it is given
        lambda: inspect_module(reference, module, example, outputs), f"{reference}: running the model"
    )


def _example(task: Task) -> Example:
    return {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
