"""The least part of a network that shows whether a channel may leave it.

What is computed outside the modules that lose rows is the same with and without them. So it is enough to run those
modules, on what went into them when the whole network ran, and to compare what comes out.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Inputs = Mapping[str, torch.Tensor]
_WHOLE = ("",)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """Modules that run one after the other, and what went in and came out in the whole network."""

    names: tuple[str, ...]  # ("",): the whole network
    args: tuple[Any, ...]
    keys: Mapping[str, Any]
    outputs: Sequence[torch.Tensor]

    def answers(self, module: nn.Module) -> list[torch.Tensor]:
        """All tensors that a network's copy gives there."""
        args, keys = copy.deepcopy((self.args, dict(self.keys)))  # a layer may work in place, a cache is filled
        first, *rest = (module.get_submodule(name) for name in self.names)
        with torch.no_grad():
            result = first(*args, **keys)
            for layer in rest:
                result = layer(result)
        return tensors(result)

    def holds(self, name: str) -> bool:
        """Whether a module is run here."""
        return any(_within(name, each) for each in self.names)


def tensors(outputs: Any) -> list[torch.Tensor]:
    """All tensors of what a forward pass returns."""
    return [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor)]


class Regions:
    """Those of one network: what goes into a module is kept from one forward pass.

    Args:
        outputs: of the whole network.
        affected: the layers of each group that will be tried.
    """

    def __init__(
        self, module: nn.Module, inputs: Inputs, outputs: Sequence[torch.Tensor], affected: Iterable[Sequence[str]]
    ) -> None:
        self._module = module
        self._calls = calls(module, inputs)
        self.whole = Region(names=_WHOLE, args=tuple(inputs.values()), keys={}, outputs=outputs)
        wanted = dict.fromkeys(self._names(layers) for layers in affected)
        wanted.pop(_WHOLE, None)
        self._known = _recorded(module, inputs, list(wanted))

    def around(self, layers: Sequence[str]) -> Region:
        """The smallest that holds these layers, and the module whose forward calls them."""
        return self._known.get(self._names(layers), self.whole)

    def _names(self, layers: Sequence[str]) -> tuple[str, ...]:
        """A part of a Sequential, or a module; called once, so that what went in is known."""
        while True:
            names = _enclosing(self._module, layers)
            if names == _WHOLE or all(self._calls.get(name) == 1 for name in names):
                return names
            layers = [_parent(names[0])] if len(names) == 1 else [names[0], names[-1], _parent(names[0])]


def lean_copy(module: nn.Module, region: Region, changed: Iterable[str]) -> nn.Module:
    """A copy for a trial; modules outside the region, and tensors of layers that stay, are the same objects."""
    memo: dict[int, Any] = {}
    own = {id(tensor) for name in changed for tensor in _tensors(module.get_submodule(name))}
    for name, layer in module.named_modules():
        if not region.holds(name) and not any(_within(each, name) for each in region.names):
            memo[id(layer)] = layer
        for tensor in _tensors(layer):
            if id(tensor) not in own:
                memo[id(tensor)] = tensor
    return copy.deepcopy(module, memo)


def _tensors(layer: nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]


def _run(module: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        module(*inputs.values())


def _within(name: str, outer: str) -> bool:
    return outer in ("", name) or name.startswith(f"{outer}.")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _enclosing(module: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """The children of a Sequential that hold all the layers, else the module that does; never a single layer alone."""
    paths = [name.split(".") if name else [] for name in layers]
    common = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) > 1:
            break
        common.append(steps[0])
    whole = any(len(path) == len(common) for path in paths)  # a parameter's holder, or the only layer
    holder = module.get_submodule(".".join(common))
    if whole and common and not list(holder.children()):
        common.pop()
        whole, holder = False, module.get_submodule(".".join(common))
    prefix = ".".join(common)
    if whole or type(holder) is not nn.Sequential:
        return (prefix,)
    children = [name for name, _ in holder.named_children()]
    places = [children.index(path[len(common)]) for path in paths]
    return tuple(f"{prefix}.{name}" if prefix else name for name in children[min(places) : max(places) + 1])


def calls(module: nn.Module, inputs: Inputs) -> dict[str, int]:
    """How often each module ran."""
    found: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            found[name] = found.get(name, 0) + 1

        return note

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in module.named_modules()]
    try:
        _run(module, inputs)
    finally:
        for each in hooks:
            each.remove()
    return found


def _recorded(module: nn.Module, inputs: Inputs, wanted: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Region]:
    """What goes in and comes out, copied, since layers that work in place change both; without what has no copy."""
    entered: dict[str, Any] = {}
    left: dict[str, list[torch.Tensor]] = {}

    def before(name: str) -> Callable[..., None]:
        def note(_: Any, args: Any, keys: Any) -> None:
            with contextlib.suppress(Exception):  # a foreign object may have no copy: the whole network is tried then
                entered[name] = copy.deepcopy((args, keys))

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_: Any, __: Any, result: Any) -> None:
            left[name] = [x.clone() for x in tensors(result)]

        return note

    hooks: list[Any] = []
    for name in {names[0] for names in wanted}:
        hooks.append(module.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True))
    for name in {names[-1] for names in wanted}:
        hooks.append(module.get_submodule(name).register_forward_hook(after(name)))
    try:
        _run(module, inputs)
    finally:
        for each in hooks:
            each.remove()
    return {
        names: Region(names=names, args=entered[names[0]][0], keys=entered[names[0]][1], outputs=left[names[-1]])
        for names in wanted
        if names[0] in entered
    }
