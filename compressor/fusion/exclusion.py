"""What is known of the labels beforehand: of some at most one is true, so that their sum is at most 1."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import onnx

from ...core.errors import RecipeError
from ...core.tables import unknown
from ...exporters.graph.compose import Nodes

_ROUNDING = 1e-5  # of a sum in single precision


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """Numbers `(N, C)` moved to where those of a group add up to at most 1; such as do already stay.

    The projection in squared error onto where the positive parts add up to at most 1: all that are positive lose the
    same, and none falls below 0 by it (Duchi et al., ICML 2008: projections onto the simplex).
    """

    groups: tuple[tuple[int, ...], ...]  # columns; no column twice
    width: int  # C

    @classmethod
    def of(
        cls, exclusive: Sequence[Sequence[str]], classes: Sequence[str], implied: Collection[str], where: str
    ) -> "Exclusion":
        """From groups of labels.

        Args:
            implied: labels that others imply, which may be raised after this and so cannot be in a group.

        Raises:
            RecipeError: a label that is none of `classes`, is named twice or implied; a group of one.
        """
        named: list[str] = []
        for index, group in enumerate(exclusive):
            if len(group) < 2:
                raise RecipeError(f"{where}[{index}]: {list(group)}; labels exclude each other from two on")
            for name in group:
                if name not in classes:
                    raise unknown(name, classes, f"{where}[{index}]")
                if name in named:
                    raise RecipeError(f"{where}[{index}]: '{name}' is named twice; a label may be in one group")
                if name in implied:
                    raise RecipeError(
                        f"{where}[{index}]: another label implies '{name}' and raises it, so that it cannot give way "
                        "to those it excludes; leave it out of the group, or out of implies"
                    )
                named.append(name)
        return cls(tuple(tuple(classes.index(name) for name in group) for group in exclusive), len(classes))

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        together, grouped = self._masks()
        positive = np.maximum(numbers, 0)
        above = together & (positive[:, None, :] >= positive[:, :, None])
        # What all would lose if this one and the larger ones were those that stay above 0; the right ones ask for most.
        loss = np.maximum((above * positive[:, None, :]).sum(2) - 1, 0) / above.sum(2)
        taken = np.where(together, loss[:, None, :], 0).max(2) * grouped
        moved: np.ndarray = np.minimum(numbers, np.maximum(numbers - taken, 0))
        return moved

    def write(self, nodes: Nodes, numbers: str) -> str:
        together, grouped = self._masks()
        row, last = nodes.constant([1], np.int64), nodes.constant([2], np.int64)
        mask, none = nodes.constant(together[None], np.bool_), nodes.constant(0)
        positive = nodes.add("Relu", numbers)
        others = nodes.add("Unsqueeze", positive, row)
        larger = nodes.add("GreaterOrEqual", others, nodes.add("Unsqueeze", positive, last))
        above = nodes.add("And", larger, mask)
        total = nodes.add("ReduceSum", nodes.add("Where", above, others, none), last, keepdims=0)
        count = nodes.add("ReduceSum", nodes.add("Cast", above, to=onnx.TensorProto.FLOAT), last, keepdims=0)
        loss = nodes.add("Div", nodes.add("Relu", nodes.add("Sub", total, nodes.constant(1))), count)
        most = nodes.add("Where", mask, nodes.add("Unsqueeze", loss, row), none)
        taken = nodes.add("Mul", nodes.add("ReduceMax", most, last, keepdims=0), nodes.constant(grouped))
        return nodes.add("Min", numbers, nodes.add("Relu", nodes.add("Sub", numbers, taken)))

    def _masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Bool `(C, C)`: of the same group, or the same; float `(C,)`: 1 where in a group."""
        together, grouped = np.eye(self.width, dtype=bool), np.zeros(self.width)
        for group in self.groups:
            together[np.ix_(group, group)], grouped[list(group)] = True, 1.0
        return together, grouped

    def broken(self, numbers: np.ndarray) -> int:
        """Pairs of a sample and a group that it is not true of."""
        sums = [np.maximum(numbers[:, group], 0).sum(1) for group in self.groups]
        return int((np.stack(sums) > 1 + _ROUNDING).sum())

    @property
    def rules(self) -> int:
        """How many groups."""
        return len(self.groups)
