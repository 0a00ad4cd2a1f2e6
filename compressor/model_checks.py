"""What a task's model may be: refused before any work is what would fail, or be lost, in the middle of it."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import TaskError
from .candidate import Candidate, check_finite, state_of
from .task_file import run_user_code


def check_built(module: Any, where: str) -> None:
    """Look at what the task's factory has built.

    Raises:
        TaskError: no module; a lazy parameter; one elsewhere than on the CPU; another float type than float32; a module
            that cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise TaskError(f"{where} must build a torch.nn.Module, it returned {type(module).__name__}")
    for name, tensor in _tensors(module):
        if nn.parameter.is_lazy(tensor):
            raise TaskError(
                f"{where}: parameter '{name}' has no shape yet (a lazy module); give its layer the sizes, or run the "
                "model on one batch in the function that builds it"
            )
        if tensor.device.type != "cpu":
            raise TaskError(
                f"{where}: the model's parameters are on '{tensor.device}' ('{name}' is); build it on the CPU, "
                "it is moved to --device where that is needed"
            )
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise TaskError(
                f"{where}: parameter '{name}' is {_type(parameter)}; the original's must be float32 (module.float()), "
                "its inputs may be of other types"
            )
    try:
        copy.deepcopy(module)
    except Exception as error:  # a foreign module may raise anything; pruning works on copies
        cause = str(error).strip().splitlines()[0].split(". ")[0]
        raise TaskError(
            f"{where}: the model cannot be copied ({cause}); the old torch.nn.utils.weight_norm and spectral_norm are "
            "such a case: use those of torch.nn.utils.parametrizations"
        ) from error


def check_loaded(module: nn.Module, built: nn.Module, where: str) -> None:
    """Compare what `load_weights` left with what the factory builds: only the weights may differ.

    A candidate is rebuilt from the factory, so that anything else would be lost without a word.

    Raises:
        TaskError: weights on the meta device, other names, shapes or types, parameters that are frozen here and not
            there, or hooks that the factory does not set.
    """
    loaded, fresh = dict(module.state_dict()), dict(built.state_dict())
    for name in [*fresh, *loaded]:
        if name not in loaded or name not in fresh:
            raise TaskError(
                f"{where} has {'added' if name in loaded else 'removed'} '{name}'; "
                "it may only fill weights: build the same architecture in the task's model function"
            )
        after, before = (f"{_type(state[name])} {tuple(state[name].shape)}" for state in (loaded, fresh))
        if after != before:
            raise TaskError(f"{where} has changed '{name}' from {before} to {after}; it may only fill weights")
        if loaded[name].device.type == "meta":
            raise TaskError(f"{where}: the model's parameters are on 'meta' ('{name}' is), so there are no weights")
    found, wanted = (dict(each.named_parameters(remove_duplicate=False)) for each in (module, built))
    for name, parameter in wanted.items():
        learns = name in found and found[name].requires_grad
        if learns != parameter.requires_grad:
            done, back, remedy = ("frozen", "unfreeze it", "freeze it")
            if learns:
                done, back, remedy = ("unfrozen", "freeze it again", "leave it trainable")
            raise TaskError(
                f"{where} has {done} '{name}', which would be lost when the model is built again; {back} at its end, "
                f"or {remedy} in the task's model function"
            )
    known = set(_hooks(built))
    for layer in _hooks(module):
        if layer not in known:
            raise TaskError(
                f"{where} has left a forward hook on {layer}, which would be lost when the model is built again; "
                "register it in the task's model function (it is exported from there), or remove it"
            )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _hooks(module: nn.Module) -> list[str]:
    """Layers whose outputs a hook can change."""
    return [
        f"'{name}'" if name else "the model itself"
        for name, layer in module.named_modules()
        if layer._forward_hooks or layer._forward_pre_hooks
    ]


def loaded(
    model: Callable[[], nn.Module],
    load_weights: Callable[[nn.Module], object] | None,
    example: Mapping[str, torch.Tensor],
    where: str,
) -> Candidate:
    """A model of the task's, built and loaded by the user's own code.

    Raises:
        TaskError: that code raises, or see `check_loaded`.
        DataError: NaN weights.
    """
    module = run_user_code(model, where)
    if load_weights is not None:
        run_user_code(lambda: load_weights(module), f"{where}: load_weights")
        check_loaded(module, run_user_code(model, where), f"{where}: load_weights")
    check_finite(state_of(module), where)
    return Candidate(factory=model, example=example, edits=(), weights=state_of(module))
