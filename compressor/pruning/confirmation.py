"""Whether groups of channels that passed one by one, each in its part of a network, are right in the whole of it.

One run for each group would cost what the parts have saved, so many groups are tried at once. Two that are wrong might
then make up for each other, as where a forward pass divides one width by another. Two things forbid it: of any two
groups there is a round with one and without the other, and of each group another number of channels leaves, at random.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from .coupling import CoupledChannels

_MOST_LEAVE = 8  # channels of one group


def sample(group: CoupledChannels, generator: torch.Generator) -> list[int]:
    """Channels to try a group without: up to half of them, and not more than eight.

    The first is among them and, of four or more, the last, so that every channel meant by number gets another number.
    """
    ends = [0, group.channels - 1] if group.channels > 3 else [0]
    most = min(group.channels // 2, _MOST_LEAVE)
    count = int(torch.randint(len(ends), most + 1, (1,), generator=generator))
    others = torch.randperm(group.channels - len(ends), generator=generator)[: count - len(ends)] + 1
    return sorted([*ends, *others.tolist()])


def rounds(names: Sequence[str]) -> Iterator[list[str]]:
    """The fewest in which each name stands, and of any two of them one without the other: the binary digits of places.

    >>> list(rounds(["a", "b", "c"]))
    [['a', 'c'], ['b', 'c']]
    """
    for digit in range(len(names).bit_length()):
        yield [name for place, name in enumerate(names, 1) if place >> digit & 1]


def wrong(names: Sequence[str], tried: Callable[[Sequence[str]], str]) -> Mapping[str, str]:
    """Name -> reason for those without which all others pass every round, found by halving.

    Args:
        tried: these at once -> why that is wrong, or an empty string.
    """
    reason = next(filter(None, map(tried, rounds(names))), "")
    if not reason:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    found = dict(itertools.chain(*(wrong(half, tried).items() for half in halves)))
    found = found or dict.fromkeys(halves[1], reason)  # right apart and wrong together: one half has to stay
    return {**found, **wrong([name for name in names if name not in found], tried)}
