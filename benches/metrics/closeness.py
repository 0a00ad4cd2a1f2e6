"""How close a changed model's outputs are to the original's: what is judged where there are no labels."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from ...core.errors import DataError
from ...core.values import Arrays

ENDS_DB = 200.0  # equal; and with a minus, nothing alike: another shape, or NaN where the original has numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Closeness:
    """One output over all runs."""

    output: str
    snr_db: float | None  # 10 log10(sum of y ** 2 / sum of (y - y') ** 2), within +-ENDS_DB; None: integers, no signal
    agreement: float | None  # share of answers that are the same: the largest of `(N, K)` or `(N, T, K)`, or integers
    answers: int  # how many there are


def compare(original: Iterable[Arrays], changed: Iterable[Arrays]) -> tuple[Closeness, ...]:
    """Every output of the original, over all runs together.

    Args:
        original: output name -> array, for each run.
        changed: the same runs in the same order.

    Raises:
        DataError: no runs, or an output that the changed model lacks.
    """
    sums: dict[str, _Sums] = {}
    for expected, found in zip(original, changed, strict=True):
        for name, array in expected.items():
            if name not in found:
                raise DataError(f"output '{name}' is missing in the changed model; it has: {', '.join(found)}")
            sums.setdefault(name, _Sums()).add(array, found[name])
    if not sums:
        raise DataError("closeness needs at least one run")
    return tuple(each.closeness(name) for name, each in sums.items())


def worst_snr(found: Iterable[Closeness]) -> float:
    """The least signal-to-noise ratio of all outputs in dB; integers are equal or not at all close."""
    return min((_decibels(each) for each in found), default=ENDS_DB)


def worst_agreement(found: Iterable[Closeness]) -> float:
    """The least share of equal answers among the outputs that have answers; 1 where none has."""
    return min((each.agreement for each in found if each.agreement is not None), default=1.0)


def _decibels(found: Closeness) -> float:
    if found.snr_db is not None:
        return found.snr_db
    return ENDS_DB if found.agreement == 1.0 else -ENDS_DB


class _Sums:
    """Running sums of one output."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._same = self._answers = 0
        self._real = False

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        self._real |= expected.dtype.kind == "f"
        if found.shape != expected.shape:
            self._noise = math.inf
            self._answers += _answers(expected).size
            return
        if expected.dtype.kind == "f":
            y, z = expected.astype(np.float64), found.astype(np.float64)
            alike = ~np.isfinite(y) & ((y == z) | (np.isnan(y) & np.isnan(z)))  # a mask's -inf has no size
            y, z = np.where(alike, 0.0, y), np.where(alike, 0.0, z)
            self._signal += float(np.sum(y**2))
            noise = float(np.sum((y - z) ** 2))
            self._noise += noise if math.isfinite(noise) else math.inf
        first, second = _answers(expected), _answers(found)
        self._same += int((first == second).sum())
        self._answers += first.size

    def closeness(self, name: str) -> Closeness:
        return Closeness(
            output=name,
            snr_db=self._snr() if self._real else None,
            agreement=self._same / self._answers if self._answers else None,
            answers=self._answers,
        )

    def _snr(self) -> float:
        if self._noise == 0:
            return ENDS_DB
        if self._signal == 0 or self._noise == math.inf:
            return -ENDS_DB
        return min(ENDS_DB, max(-ENDS_DB, 10 * math.log10(self._signal / self._noise)))


def _answers(array: np.ndarray) -> np.ndarray:
    """What an output says: the index of the largest value along its last axis, or the integers themselves."""
    if array.dtype.kind != "f":
        return array.reshape(-1)
    if array.ndim not in (2, 3) or array.shape[-1] < 2:  # the last axis of an image is no choice
        return array.reshape(-1)[:0]
    answers: np.ndarray = array.argmax(axis=-1).reshape(-1)
    return answers
