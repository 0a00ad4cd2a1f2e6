"""Samples of a task's split as runs, read when they are fed: memory does not depend on how many there are."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from ...core.task import Split
from ...core.values import Arrays
from .runs import Runs


class SplitFeeds(Sequence[Arrays]):
    """Batches of a split, each fetched anew whenever it is asked for.

    Args:
        split: where they are fetched.
        parts: indices of the samples of each batch.
    """

    def __init__(self, split: Split, parts: Sequence[np.ndarray]) -> None:
        self._split, self._parts = split, parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Arrays: ...

    @overload
    def __getitem__(self, index: slice) -> "SplitFeeds": ...

    def __getitem__(self, index: int | slice) -> "Arrays | SplitFeeds":
        if isinstance(index, slice):
            return SplitFeeds(self._split, self._parts[index])
        return self._split.batch(self._parts[index])[0]


def from_split(split: Split, indices: np.ndarray, batch_size: int, labelled: bool) -> Runs:
    """Samples of a task's split in batches, and their labels where they are wanted and there are any."""
    parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    feeds = SplitFeeds(split, parts)
    if not labelled:
        return Runs(feeds=feeds)
    labels = [found for found in (split.batch(part)[1] for part in parts) if found is not None]
    return Runs(feeds=feeds, labels=np.concatenate(labels) if labels else None)
