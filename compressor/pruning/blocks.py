"""Whole blocks of a network: which of them can be taken out, and taking one out."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...core.errors import ArtifactError
from ..edit import BlockEdit
from .coupling import Example

_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


class PassThrough(nn.Module):
    """Stands where a block was: returns its first argument, or zeros, in a tuple if the block returned one."""

    def __init__(self, in_tuple: bool, zero: bool) -> None:
        super().__init__()
        self._in_tuple, self._zero = in_tuple, zero

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> Any:
        y = torch.zeros_like(x) if self._zero else x
        return (y,) if self._in_tuple else y


def find(module: nn.Module, example: Example) -> list[str]:
    """Names of the blocks that can be taken out, in the order of the network.

    A block has layers inside, gets one tensor first and returns one of the same shape, and is called once. A chain of
    blocks counts as its parts: a `nn.Sequential`, and whatever holds several residual blocks of one class, as an
    encoder does. What else lies inside a block is no block of its own.
    """
    return list(edits(module, example))


def edits(module: nn.Module, example: Example) -> dict[str, BlockEdit]:
    """Block -> what takes it out: zeros stand in for it where the caller adds to it what went in, `x + block(x)`."""
    seen = _observe(module, example)
    layers = dict(module.named_modules())
    able = [
        name
        for name, layer in layers.items()
        if name != "" and not isinstance(layer, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        and any(layer.children()) and name in seen and seen[name].able
    ]  # fmt: skip

    def units(names: list[str]) -> Iterator[str]:
        """The outermost of these, or what they are chains of."""
        while names:
            first, inside = names[0], [name for name in names if name.startswith(f"{names[0]}.")]
            names = names[1 + len(inside) :]
            parts = list(units(inside))
            kinds = Counter(type(layers[name]) for name in parts if seen[name].added or seen[name].residual)
            yield from parts if max(kinds.values(), default=0) > 1 else [first]

    return {name: BlockEdit(block=name, zero=seen[name].added) for name in units(able)}


def remove(module: nn.Module, example: Example, edit: BlockEdit) -> None:
    """Put a `PassThrough` in place of a block.

    Raises:
        ArtifactError: the architecture has no such block, or it cannot be taken out.
    """
    call = _observe(module, example).get(edit.block)
    if call is None or not call.able:
        known = ", ".join(find(module, example)) or "none"
        raise ArtifactError(
            f"edit of block '{edit.block}': the architecture has no such block to take out; it has: {known}"
        )
    module.set_submodule(edit.block, PassThrough(call.in_tuple, edit.zero))


@dataclasses.dataclass(kw_only=True, eq=False)
class _Call:
    """One module's call, as it was seen."""

    given: Any  # its first argument
    result: Any  # what it returned, out of a tuple of one
    in_tuple: bool
    able: bool  # a tensor came in, one of the same shape came out, and it was called once
    sums: slice  # of all sums, those inside it
    residual: bool = False  # what came in is added to something inside
    added: bool = False  # its result is added to what came in, outside


class _Sums(TorchFunctionMode):
    """What is added to what; and where a tensor comes from, through norms, scales, dropout and views."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._source: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id -> the tensor, which keeps it, its source
        tensors = [*module.parameters(), *module.buffers()]
        self._scales = {id(x) for x in tensors if x.numel() <= max(x.shape, default=1)}  # a number for each channel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and id(x) not in self._scales]
        if isinstance(result, torch.Tensor) and func.__name__ in _SUMS and len(given) == 2:
            self.pairs.append((given[0], given[1]))
        elif isinstance(result, torch.Tensor) and len(given) == 1 and result is not given[0]:
            self._source[id(result)] = result, given[0]
        return result

    def behind(self, tensor: torch.Tensor, results: set[int]) -> list[torch.Tensor]:
        """A tensor and those it comes from, back to the first that is a block's result."""
        found = [tensor]
        while id(found[-1]) not in results and id(found[-1]) in self._source:
            found.append(self._source[id(found[-1])][1])
        return found


def _observe(module: nn.Module, example: Example) -> Mapping[str, _Call]:
    """Every module that was called."""
    seen: dict[str, _Call] = {}
    begun: dict[str, int] = {}
    sums = _Sums(module)

    def note(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        in_tuple = isinstance(result, tuple)
        value = result[0] if in_tuple and len(result) == 1 else result
        given = arguments[0] if arguments else None
        same = isinstance(value, torch.Tensor) and isinstance(given, torch.Tensor) and given.shape == value.shape
        inside = slice(begun[name], len(sums.pairs))
        able = same and name not in seen
        seen[name] = _Call(given=given, result=value, in_tuple=in_tuple, able=able, sums=inside)

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: begun.update({name: len(sums.pairs)})

    hooks: list[Any] = []
    for name, layer in module.named_modules():
        hooks.append(layer.register_forward_pre_hook(begin(name)))
        hooks.append(layer.register_forward_hook(lambda _, given, result, name=name: note(name, given, result)))
    try:
        with torch.no_grad(), sums:
            module.eval()(*example.values())
    finally:
        for hook in hooks:
            hook.remove()
    blocks = {name: call for name, call in seen.items() if call.able and any(module.get_submodule(name).children())}
    results = {id(call.result) for call in blocks.values()}
    for call in blocks.values():
        call.residual = any(call.given is each for pair in sums.pairs[call.sums] for each in pair)
        stream = {id(each) for each in sums.behind(call.given, results)}
        call.added = any(
            id(other) in stream and any(each is call.result for each in sums.behind(mine, results))
            for pair in sums.pairs[call.sums.stop :]  # in-place sums inside it give what it returns
            for mine, other in (pair, pair[::-1])
        )
    return seen
