"""What a fusion comes to: a combination of some members, what follows it, and who counts how much."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .fusing import Combination, Stacking
from .recalibrate import Calibration


@dataclasses.dataclass(frozen=True)
class Fused:
    """What is made of the stack: a combination of some of its members, and what comes after it."""

    members: tuple[int, ...]
    combination: Combination
    after: tuple[Calibration, ...] = ()

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        fused = self.combination(stack[:, list(self.members)])
        for step in self.after:
            fused = step(fused)
        return fused


def said(fused: Fused, fits: Sequence[Fused], members: Sequence[str]) -> str:
    """Who counts how much, and who is left out.

    Args:
        fits: the same without one fold each, for the standard errors; one: there are none.
        members: names of all.
    """
    weights = getattr(fused.combination, "weights", None)
    names = [members[member] for member in fused.members]
    if weights is None:
        kind = "a linear model" if isinstance(fused.combination, Stacking) else "a gate"
        text = f"{kind} on {', '.join(names)}; learnt on validation data"
    else:
        errors = _jackknife([_spread(each, len(members)) for each in fits])
        shown = [
            f"{name} {weight:.3f}" + (f" (standard error {errors[member]:.3f})" if len(fits) > 1 else "")
            for name, weight, member in zip(names, weights, fused.members, strict=True)
        ]
        text = f"weights: {', '.join(shown)}"
    left = [name for name in members if name not in names]
    return text + (f"; left out, as adding nothing: {', '.join(left)}" if left else "")


def _spread(fused: Fused, members: int) -> np.ndarray:
    weights = np.zeros(members)
    weights[list(fused.members)] = getattr(fused.combination, "weights", 0.0)
    return weights


def _jackknife(estimates: Sequence[np.ndarray]) -> np.ndarray:
    """The standard error of an estimate from those made without one fold each (Efron & Stein, 1981)."""
    values, count = np.stack(estimates), len(estimates)
    error: np.ndarray = np.sqrt((count - 1) * values.var(0))
    return error
