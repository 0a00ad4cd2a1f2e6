"""What a channel may be, and what may count channels: guesses for a dry run, from numbers that the layers hold."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from .coupling import Count, CoupledChannels, Layout

_MOST_LAYOUTS = 24  # that are tried for one group


def layouts_of(module: nn.Module, group: CoupledChannels, alone: int) -> Iterator[Layout]:
    """Other ways to see the rows, by numbers that the layers hold: groups first, then runs of rows, then rows.

    Args:
        alone: how many rows leave with a single one, as two where the halves of a layer are multiplied.
    """
    rows = group.channels
    few = [] if alone == 1 or rows % alone or rows == alone else [Layout(outer=alone), Layout(inner=alone)]
    yield from few
    groups = {number for name in names_of(group) for number in _numbers(module.get_submodule(name))}
    groups |= {first * second for first, second in itertools.product(groups, groups)}  # a shuffle between two
    groups = {number for number in groups if rows % number == 0 and number < rows}
    factors = sorted({1, 3, *groups, *_hints(module, group)})
    pairs = [
        (outer, inner)
        for outer, inner in itertools.product(factors, factors)
        if outer * inner > 1 and rows % (outer * inner) == 0 and rows // (outer * inner) > 1
    ]

    def order(pair: tuple[int, int]) -> tuple[bool, bool, int, int]:
        outer, inner = pair
        return not (inner == 1 and outer in groups), inner == 1, outer * inner, outer

    yield from (Layout(outer=outer, inner=inner) for outer, inner in sorted(pairs, key=order)[:_MOST_LAYOUTS])
    if rows % 2 == 0 and rows > 2:
        yield Layout(outer=2)  # halves that go different ways


def names_of(group: CoupledChannels) -> list[str]:
    """The layers of a group, each once."""
    return list(dict.fromkeys(member.layer for member in group.members))


def _numbers(layer: nn.Module) -> list[int]:
    """In how many groups a layer takes its channels."""
    found = [getattr(layer, name, 1) for name in ("groups", "num_groups")]
    return [number for number in found if isinstance(number, int) and number > 1]


def _parents(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _integers(layer: nn.Module) -> Mapping[str, int]:
    return {
        name: value
        for name, value in vars(layer).items()
        if type(value) is int and value > 1 and not name.startswith("_")
    }


def _hints(module: nn.Module, group: CoupledChannels) -> set[int]:
    """Numbers of the modules around a group's layers, of layers without weights, and their squares (a shuffle's)."""
    around = [module.get_submodule(name) for name in _parents(names_of(group))]
    plain = [layer for layer in module.modules() if not [*layer.children(), *layer.parameters()]]
    found = {number for layer in around for number in _integers(layer).values()}
    factors = {number for layer in plain for number in _integers(layer).values()}
    return {n for n in found | factors | {n * n for n in factors} if n > 1 and group.channels % n == 0}


def counts_of(module: nn.Module, group: CoupledChannels) -> Iterator[Count]:
    """Attributes of the modules that hold the layers that write the channels, which may count them."""
    channels, layout = group.channels, group.layout
    for each in dict.fromkeys((1, layout.inner, layout.outer, layout.size)):
        for name in _parents(group.layers):
            for attribute, value in _integers(module.get_submodule(name)).items():
                if value == each * channels:
                    yield Count(module=name, attribute=attribute, each=each)


def bookkeeping_of(module: nn.Module, group: CoupledChannels) -> Iterator[Count]:
    """Of those, what is likely to count them although no forward pass needs it.

    It stands beside one that is needed, or beside the size of a channel, as num_heads does beside head_dim. Any other
    number may be equal by chance, as a length and a width.
    """
    needed = {count.module for count in group.counts}
    for count in counts_of(module, group):
        beside = [x for name, x in _integers(module.get_submodule(count.module)).items() if name != count.attribute]
        sized = group.layout.inner > 1 and group.layout.inner in beside
        if count not in group.counts and (count.module in needed or sized):
            yield count
