"""Weights for `edgesmith init`: how a file of them is laid out, and whether it fits the user's architecture."""

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import nn

from ...core.errors import ArtifactError, TaskError
from ..candidate import check_finite, state_of

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put the weights
_SHOWN = 4  # names of keys in an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """How the generated task loads the weights."""

    path: Path | None  # None: the factory's module is trained already
    form: Literal["none", "safetensors", "torch"] = "none"
    container: str = ""  # key under which a checkpoint keeps them
    prefix: str = ""  # "module." where they were saved from a parallel wrapper
    tied: bool = False  # weights that two layers share stand in the file once


def fit(build: Callable[[], nn.Module], path: Path | None, what: str) -> tuple[nn.Module, Weights]:
    """Build the architecture and load the weights as the generated task will.

    Args:
        build: makes the architecture.
        path: .safetensors, or what `torch.save` wrote of a state dict; None: `build` returns a trained module.
        what: the model, for errors.

    Raises:
        ArtifactError: a file that cannot be read, or whose keys or shapes do not fit; names them.
        DataError: NaN or infinity in a weight.
        TaskError: no file, and the architecture has other weights every time it is built.
    """
    module = build()
    if path is None:
        _check_trained(module, build, what)
        check_finite(state_of(module), what)
        return module, Weights(path=None)
    if path.suffix == ".safetensors":
        weights, state = Weights(path=path, form="safetensors"), _safetensors(path)
    else:
        found, container = _checkpoint(path)
        weights, state = Weights(path=path, form="torch", container=container), found
    prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    check_finite(state, str(path))
    _check_keys(module, state, path, what)
    tied = bool(set(module.state_dict()) - set(state))
    module.load_state_dict(state, strict=not tied)
    return module, dataclasses.replace(weights, prefix=prefix, tied=tied)


def _check_trained(module: nn.Module, build: Callable[[], nn.Module], what: str) -> None:
    state, again = module.state_dict(), build().state_dict()
    if any(not torch.equal(tensor, again[name]) for name, tensor in state.items()):
        raise TaskError(
            f"{what}: its weights are other ones each time it is built, so it is not trained; give them with --weights "
            "FILE.safetensors or FILE.pt, or name a function that returns the trained module"
        )


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ArtifactError(f"{path}: cannot read the weights: {reason}") from error


def _checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the weights: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(
            f"{path}: not a file of plain weights, and nothing else is unpickled; save them again with "
            "torch.save(model.state_dict(), ...)"
        ) from error
    for container in ("", *_CONTAINERS):
        state = loaded if not container else loaded.get(container) if isinstance(loaded, Mapping) else None
        if isinstance(state, Mapping) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
            return dict(state), container
    held = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise ArtifactError(f"{path}: no state dict found in it, it holds: {held}; save model.state_dict()")


def _check_keys(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path, what: str) -> None:
    own = module.state_dict()
    missing = sorted(_without_tied(module, set(own) - set(state), set(state)))
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ArtifactError(f"{path}: these are not the weights of {what}: keys: {', '.join(problems)}")


def _without_tied(module: nn.Module, missing: set[str], given: set[str]) -> set[str]:
    """Missing keys whose tensor is no other key's: a file may keep tied weights once."""
    places: dict[int, set[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        places.setdefault(id(tensor), set()).add(name)
    tied = set().union(*(names for names in places.values() if names & given))
    return missing - tied


def _some(names: list[str]) -> str:
    more = f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
