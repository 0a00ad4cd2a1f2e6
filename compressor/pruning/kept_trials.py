"""What a dry run found, kept while the process lives: a run asks again what its rehearsal has asked.

It depends on how a network is built and not on its weights, which are random in a trial. So it is kept under all of
that: who made the network, its modules' classes and numbers, the shapes and ties of its tensors, what is fed to it,
and which of its channels are coupled, which is traced anew each time, since weights may decide where control flows.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...core import digest
from .coupling import CoupledChannels, Example

_MOST = 16  # networks that are kept

Found = tuple[list[CoupledChannels], dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    factory: Callable[[], nn.Module]  # held, so that no other object can get its id
    classes: tuple[type, ...]
    found: Found


class KeptTrials:
    """The last networks that were tried."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], _Kept] = {}

    def get(self, factory: Callable[[], nn.Module], module: nn.Module, key: str) -> Found | None:
        """What was found of a network that `factory` made and that has this key, see `key_of`."""
        kept = self._kept.get((id(factory), key))
        if kept is None or kept.factory is not factory or kept.classes != _classes(module):
            return None
        groups, reasons = kept.found
        return list(groups), dict(reasons)

    def put(self, factory: Callable[[], nn.Module], module: nn.Module, key: str, found: Found) -> None:
        """Keep it; the oldest goes."""
        while len(self._kept) >= _MOST:
            del self._kept[next(iter(self._kept))]
        groups, reasons = found
        self._kept[(id(factory), key)] = _Kept(
            factory=factory, classes=_classes(module), found=(list(groups), dict(reasons))
        )


def key_of(module: nn.Module, example: Example, groups: Sequence[CoupledChannels]) -> str:
    """A digest of all that a dry run may depend on, besides the classes and who made the module."""
    first: dict[int, str] = {}  # a tensor -> the first name it has
    tensors = {
        name: [first.setdefault(id(x), name), str(x.dtype), list(x.shape)]
        for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        for name, x in named
    }
    state = module.state_dict()
    fixed = {  # what no trial makes random
        name: x for name, x in module.named_buffers() if name not in state or not x.is_floating_point()
    }
    layers = {name: _plain(vars(layer)) for name, layer in module.named_modules(remove_duplicate=False)}
    coupled = [
        [group.root, group.channels, group.lost, group.shared, [[each.layer, each.kind] for each in group.members]]
        for group in groups
    ]
    rows = {
        f"{group.root}/{place}/{what}": tensor.numpy()
        for group in groups
        for place, member in enumerate(group.members)
        for what, tensor in (("rows", member.rows), ("channels", member.channels))
    }
    return digest.of_json([tensors, layers, coupled, digest.of_arrays(rows), _bytes(fixed), _bytes(example)])


def _bytes(tensors: Mapping[str, torch.Tensor]) -> list[Any]:
    arrays = {name: x.detach().contiguous().flatten().view(torch.uint8).numpy() for name, x in tensors.items()}
    return [digest.of_arrays(arrays), {name: [str(x.dtype), *x.shape] for name, x in tensors.items()}]


def _classes(module: nn.Module) -> tuple[type, ...]:
    return tuple(type(layer) for layer in module.modules())


def _plain(value: Any) -> Any:
    """Numbers, texts and collections of them; of everything else the kind, which the factory gives alike."""
    if isinstance(value, Mapping):
        return [[repr(key) if _simple(key) else type(key).__qualname__, _plain(x)] for key, x in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    return repr(value) if _simple(value) else type(value).__qualname__


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype))
