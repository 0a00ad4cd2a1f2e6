"""What is known of the labels beforehand: one implies another, so that its number can be no larger."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ...core.errors import RecipeError
from ...core.tables import unknown
from ...exporters.graph.compose import Nodes

_FAR = 3e38  # beyond all numbers of single precision


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Numbers `(N, C)` moved to where none is larger than one it implies; such as are there already stay.

    Half-way between the nearest from above, where each is the largest of those that imply it (Giunchiglia &
    Lukasiewicz, NeurIPS 2020), and the nearest from below, where each is the smallest of those that it implies. For two
    that contradict each other that is their mean: the projection in squared error.
    """

    below: np.ndarray  # bool (C, C): [b, a] where a is b, or implies it, at once or through others

    @classmethod
    def of(cls, implies: Mapping[str, Sequence[str]], classes: Sequence[str], where: str) -> "Hierarchy":
        """From rules, label -> labels that it implies.

        Raises:
            RecipeError: a label that is none of `classes`, or one that implies itself.
        """
        below = np.eye(len(classes), dtype=bool)
        for one, others in implies.items():
            for name in (one, *others):
                if name not in classes:
                    raise unknown(name, classes, where)
            for other in others:
                below[classes.index(other), classes.index(one)] = True
        for through in range(len(classes)):  # transitive closure (Warshall, 1962)
            below |= below[:, through, None] & below[None, through, :]
        rounds = [(a, b) for a, b in np.argwhere(below & below.T) if a < b]
        if rounds or any(one in others for one, others in implies.items()):
            name = classes[rounds[0][0]] if rounds else next(one for one, others in implies.items() if one in others)
            raise RecipeError(f"{where}: '{name}' implies itself, at once or through others; leave a rule out")
        return cls(below)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        above = np.where(self.below, numbers[:, None, :], -np.inf).max(2)
        under = np.where(self.below.T, numbers[:, None, :], np.inf).min(2)
        halfway: np.ndarray = (above + under) / 2
        return halfway

    def write(self, nodes: Nodes, numbers: str) -> str:
        row, last = nodes.add("Unsqueeze", numbers, nodes.constant([1], np.int64)), nodes.constant([2], np.int64)
        chosen = [
            nodes.add("Where", nodes.constant(mask[None], np.bool_), row, nodes.constant(far))
            for mask, far in ((self.below, -_FAR), (self.below.T, _FAR))
        ]
        above = nodes.add("ReduceMax", chosen[0], last, keepdims=0)
        under = nodes.add("ReduceMin", chosen[1], last, keepdims=0)
        return nodes.add("Mul", nodes.add("Add", above, under), nodes.constant(0.5))

    def broken(self, numbers: np.ndarray) -> int:
        """Pairs of a sample and a rule, those that follow from others included, that it is not true of."""
        upper, lower = np.nonzero(self.below & ~np.eye(len(self.below), dtype=bool))
        return int((numbers[:, lower] > numbers[:, upper]).sum())

    @property
    def rules(self) -> int:
        """How many, those that follow from others included."""
        return int(self.below.sum()) - len(self.below)
