"""The layers of a network as groups from its input to its output: what is unfrozen and slowed down group by group."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ...exporters.sessions.torch_session import copied, forward

Example = Mapping[str, torch.Tensor]


def layer_groups(module: nn.Module, example: Example, outputs: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of all parameters in groups, in the order in which a pass on `example` comes to them; the last is the head.

    A group is a block of a stack (two or more modules of one class in a row, as a transformer's layers), or a module
    that holds no stack, as embeddings or a classifier. Norms go with what stands before them; parameters that a module
    with a stack has of its own (a class token) go with its first group, tied ones with the first that has them.
    """
    names = list(_split(module, ""))
    order = _first_calls(module, names, example, outputs)
    known, taken = {name for name, _ in module.named_parameters()}, set[str]()
    groups: list[tuple[str, ...]] = []
    for name in sorted(names, key=lambda name: order.get(name, -1)):  # one that is not called has nothing to learn
        part = module.get_submodule(name)
        every = (f"{name}.{each}".removeprefix(".") for each, _ in part.named_parameters())
        own = tuple(each for each in every if each in known and each not in taken)
        taken.update(own)
        if groups and own and _is_norm(part):
            groups[-1] += own
        elif own:
            groups.append(own)
    loose = tuple(name for name, _ in module.named_parameters() if name not in taken)
    return [loose + groups[0], *groups[1:]] if groups else [loose]


def _split(module: nn.Module, name: str, root: bool = True) -> Iterator[str]:
    """Qualified names of the modules that are groups."""
    children = [(each, child) for each, child in module.named_children() if any(True for _ in child.parameters())]
    if not children or not (root or len(children) == 1 or _is_list(module) or _holds_stack(module)):
        yield name
        return
    stacked = _stacked(module)
    for each, child in children:
        inner = f"{name}.{each}".removeprefix(".")
        if type(child) in stacked:
            yield inner
        else:
            yield from _split(child, inner, root=False)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def _stacked(module: nn.Module) -> set[type[nn.Module]]:
    """Classes of blocks, modules with layers inside, that a list has two or more of."""
    blocks = [type(child) for child in module.children() if any(True for _ in child.children())]
    return {kind for kind in blocks if _is_list(module) and kind is not nn.Sequential and blocks.count(kind) > 1}


def _holds_stack(module: nn.Module) -> bool:
    return any(_stacked(part) for part in module.modules())


def _is_norm(module: nn.Module) -> bool:
    return all(parameter.ndim <= 1 for parameter in module.parameters())


def _first_calls(module: nn.Module, names: list[str], example: Example, outputs: Sequence[str]) -> dict[str, int]:
    order: dict[str, int] = {}

    def note(name: str) -> None:
        order.setdefault(name, len(order))

    parts = {name: module.get_submodule(name) for name in names}
    handles = [part.register_forward_pre_hook(lambda *_, name=name: note(name)) for name, part in parts.items()]
    training = module.training
    try:
        with torch.no_grad():
            forward(module.eval(), copied(example), outputs)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return order
