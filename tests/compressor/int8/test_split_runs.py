"""A task's samples as runs: in order, with their labels, and never all of them in memory."""

import tracemalloc

import numpy as np

from edgesmith.compressor.int8.runs import batched
from edgesmith.compressor.int8.split_runs import from_split
from edgesmith.core.task import ArraySplit
from edgesmith.core.values import TensorSpec

ROW = 4096  # numbers


class Made:
    """Sample i holds i, and is made when it is asked for, as pictures are read from a disk."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        return {"x": np.repeat(indices[:, None], ROW, 1).astype(np.float32)}, indices % 10


def test_batches_are_those_of_the_indices_with_their_labels() -> None:
    runs = from_split(Made(100), np.array([7, 3, 99, 20, 1]), 2, labelled=True)
    assert len(runs) == 3
    assert [feed["x"][:, 0].tolist() for feed in runs.feeds] == [[7, 3], [99, 20], [1]]
    assert [feed["x"][:, 0].tolist() for feed in runs.feeds[1:]] == [[99, 20], [1]]
    assert runs.labels is not None and runs.labels.tolist() == [7, 3, 9, 0, 1]
    assert from_split(Made(100), np.arange(5), 2, labelled=False).labels is None
    unlabelled = ArraySplit({"x": np.zeros((5, 2), np.float32)})
    assert from_split(unlabelled, np.arange(5), 2, labelled=True).labels is None


def test_each_batch_is_fetched_once_for_all_inputs() -> None:
    fetched: list[list[int]] = []

    class Three(Made):
        def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
            fetched.append(indices.tolist())
            return {name: np.full((len(indices), 2), indices[0], np.float32) for name in "abc"}, None

    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2)) for name in "abc")
    runs = from_split(Three(8), np.arange(8), 2, labelled=False)
    (several,) = batched(runs.feeds, inputs, 4, 2).values()
    assert [feed["c"][:, 0].tolist() for feed in several] == [[0, 0, 2, 2], [4, 4, 6, 6]]
    assert fetched == [[0, 1], [0, 1], [2, 3], [4, 5], [6, 7]]  # the first once more, for how many rows it has


def test_memory_does_not_grow_with_the_samples() -> None:
    batch = 32 * ROW * 4  # bytes as float32; they are made of int64
    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", ROW)),)
    tracemalloc.start()
    try:
        runs = from_split(Made(4096), np.arange(4096), 32, labelled=True)
        timed = batched(runs.feeds, inputs, None, 2)
        assert sum(len(feed["x"]) for feed in runs.feeds) == 4096
        assert tracemalloc.get_traced_memory()[1] < 8 * batch
    finally:
        tracemalloc.stop()
    assert [feed["x"][0, 0] for feed in timed[32]] == [0, 32]
