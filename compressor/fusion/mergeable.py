"""Which models can be merged: those whose weights have the same names, shapes and meaning."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ...core.errors import DataError, RecipeError
from ..candidate import Candidate

_SHOWN = 3  # differing tensors in an error
_COUNTS = "num_batches_tracked"  # of a batch norm; it is not what the model computes with


def parameter_names(module: nn.Module) -> dict[str, str]:
    """Every parameter's name in the state dict -> the name it goes by; tied ones go by that of the first."""
    first: dict[int, str] = {}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in every}


def require_alike(models: Mapping[str, Candidate], where: str) -> None:
    """Refuse models whose weights do not mean the same.

    Raises:
        RecipeError: another class, other edits, tensors of other names, shapes or types, layers with other settings.
    """
    (first, reference), *others = models.items()
    for name, model in others:
        for problem in _differences(reference, model, first, name):
            raise RecipeError(f"{where}: '{name}' cannot be merged with '{first}': {problem}")


def require_finite(models: Mapping[str, Candidate], where: str) -> None:
    """Refuse trained models that would spoil all that is merged with them.

    Raises:
        DataError: parameters that are NaN or infinite; names one.
    """
    for name, model in models.items():
        for each in parameter_names(model.module()):
            if not bool(model.weights[each].isfinite().all()):
                raise DataError(
                    f"{where}: '{name}' holds NaN or infinity in '{each}', and so would all that is merged with it; "
                    "leave it out"
                )


def _differences(a: Candidate, b: Candidate, first: str, second: str) -> Iterator[str]:
    ours, theirs = a.module(), b.module()
    if type(ours) is not type(theirs):
        yield f"it is a {type(theirs).__name__}, not a {type(ours).__name__}"
    shapes = [{name: _shape(tensor) for name, tensor in model.weights.items()} for model in (a, b)]
    other = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if other:
        shown = "; ".join(
            f"'{name}' is {shapes[1].get(name, 'missing')} in '{second}', {shapes[0].get(name, 'missing')} in '{first}'"
            for name in other[:_SHOWN]
        )
        more = f"; and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        yield f"{len(other)} tensors differ: {shown}{more}"
    if a.edits != b.edits:
        yield "other channels or blocks were taken out of it; prune once, and train copies of that"
    layers, twins = dict(ours.named_modules()), dict(theirs.named_modules())
    for name in {**layers, **twins}:
        both = layers.get(name), twins.get(name)
        texts = [_text(layer) for layer in both]
        if texts[0] != texts[1] or type(both[0]) is not type(both[1]):
            yield f"layer '{name}' is {texts[1]} in '{second}', {texts[0]} in '{first}'"
    for name, tensor in a.weights.items():
        if not tensor.is_floating_point() and not name.endswith(_COUNTS) and not torch.equal(tensor, b.weights[name]):
            yield f"the integers of '{name}' differ, and have no average"


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _text(layer: nn.Module | None) -> str:
    """Its class and settings; dropout of whatever kind is of training alone, and its rate does not matter."""
    if layer is None:
        return "missing"
    settings = "" if "drop" in type(layer).__name__.lower() else layer.extra_repr()
    return f"{type(layer).__name__}({settings})"
