"""How many channels each group keeps at a given intensity. Pure functions; a search over intensity meets the ratio."""

import dataclasses
from collections.abc import Callable, Mapping

import torch

Scores = Mapping[str, torch.Tensor]  # root -> (channels,) with mean 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What an allocation may know of the groups besides their scores."""

    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # root -> relative intensity, as asked
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)  # root -> see `coupling.kind_of`


Allocation = Callable[[Scores, float, Facts], dict[str, float]]


def uniform(scores: Scores, intensity: float, facts: Facts) -> dict[str, float]:
    """Every group loses the same share of its channels."""
    return {root: len(values) * (1 - intensity) for root, values in scores.items()}


def global_ranking(scores: Scores, intensity: float, facts: Facts) -> dict[str, float]:
    """The lowest-ranked share of all channels goes, wherever it stands; of equals every group's go alike."""
    every = torch.cat(list(scores.values()))
    of = torch.cat([torch.full((len(values),), group) for group, values in enumerate(scores.values())])
    place = torch.cat([values.argsort(stable=True).argsort() / len(values) for values in scores.values()])
    order = place.argsort(stable=True)
    order = order[every[order].argsort(stable=True)]  # by score, then by the place among its own group's
    gone = of[order[: round(intensity * len(every))]].bincount(minlength=len(scores))
    return {root: float(len(scores[root]) - gone[group]) for group, root in enumerate(scores)}


def isomorphic(scores: Scores, intensity: float, facts: Facts) -> dict[str, float]:
    """Every kind of group loses the same share, and only groups of one kind are ranked against each other.

    Scores of differently built groups cannot be compared (Fang et al., Isomorphic Pruning, ECCV 2024).
    """
    kept: dict[str, float] = {}
    for kind in dict.fromkeys(facts.kinds.get(root, root) for root in scores):
        alike = {root: values for root, values in scores.items() if facts.kinds.get(root, root) == kind}
        kept |= global_ranking(alike, intensity, facts)
    return {root: kept[root] for root in scores}


def per_group(scores: Scores, intensity: float, facts: Facts) -> dict[str, float]:
    """Every group loses a share in proportion to its weight over the largest; weight 1 where the recipe names none."""
    weights = {root: facts.weights.get(root, 1.0) for root in scores}
    largest = max(weights.values())
    return {root: len(values) * (1 - intensity * weights[root] / largest) for root, values in scores.items()}


ALLOCATIONS: dict[str, Allocation] = {
    "global": global_ranking,
    "isomorphic": isomorphic,
    "uniform": uniform,
    "per-group": per_group,
}


def aligned(kept: float, channels: int, multiple: int) -> int:
    """The kept count as a runtime likes it: the nearest multiple, at least one multiple, at most all.

    >>> [aligned(kept, 64, 8) for kept in (0.0, 13.0, 61.0, 64.0)]
    [8, 16, 64, 64]
    >>> aligned(3.0, 10, 8), aligned(3.0, 6, 8)
    (8, 6)
    """
    rounded = max(1, int(kept / multiple + 0.5)) * multiple
    return min(channels, rounded)
