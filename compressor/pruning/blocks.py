"""Whole blocks of a network: which of them can be taken out, and taking one out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...core.errors import ArtifactError
from .coupling import Example


class PassThrough(nn.Module):
    """Stands where a block was: returns its first argument, in a tuple if the block returned one."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self._in_tuple = in_tuple

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (x,) if self._in_tuple else x


def find(module: nn.Module, example: Example) -> list[str]:
    """Blocks that can be taken out, in the order of the network.

    A block has layers inside, gets one tensor first and returns one of the same shape, and is called once. A chain of
    blocks (`nn.Sequential`) counts as its parts. What lies inside a block is no block of its own.
    """
    seen = _observe(module, example)
    found: list[str] = []
    for name, layer in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        whole = name != "" and not isinstance(layer, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        if whole and not inside and any(layer.children()) and seen.get(name) in (False, True):
            found.append(name)
    return found


def remove(module: nn.Module, example: Example, block: str) -> None:
    """Put a `PassThrough` in place of a block.

    Raises:
        ArtifactError: the architecture has no such block, or it cannot be taken out.
    """
    in_tuple = _observe(module, example).get(block)
    if in_tuple is None:
        known = ", ".join(find(module, example)) or "none"
        raise ArtifactError(f"edit of block '{block}': the architecture has no such block to take out; it has: {known}")
    module.set_submodule(block, PassThrough(in_tuple))


def _observe(module: nn.Module, example: Example) -> Mapping[str, bool | None]:
    """Module name -> whether it returns a tuple; None where its input and output differ, or it is called twice."""
    seen: dict[str, bool | None] = {}

    def note(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        value = result[0] if isinstance(result, tuple) and len(result) == 1 else result
        given = arguments[0] if arguments else None
        same = isinstance(value, torch.Tensor) and isinstance(given, torch.Tensor) and given.shape == value.shape
        seen[name] = isinstance(result, tuple) if same and name not in seen else None

    hooks = [
        layer.register_forward_hook(lambda _, arguments, result, name=name: note(name, arguments, result))
        for name, layer in module.named_modules()
    ]
    try:
        with torch.no_grad():
            module.eval()(*example.values())
    finally:
        for hook in hooks:
            hook.remove()
    return seen
