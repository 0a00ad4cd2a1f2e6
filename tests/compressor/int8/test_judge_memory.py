"""A judge gives the numbers that all outputs together would give, and holds those of one run."""

import errno
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgesmith.benches.metrics import accuracy, closeness, metrics
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.compressor.int8.closeness_judge import Judge, Promise, run
from edgesmith.compressor.int8.kept_answers import KeptAnswers
from edgesmith.compressor.int8.runs import Runs
from edgesmith.core.task import Metric
from edgesmith.core.values import Arrays

CLASSES = 10


class Seeds:
    """Feeds that are made when they are asked for."""

    def __init__(self, rows: Iterable[int]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Arrays]:
        for seed, count in enumerate(self._rows):
            yield {"x": np.random.default_rng(seed).standard_normal((count, CLASSES))}


class Network:
    """Opens itself: scores `(B, 10)` and a map `(B, ...)`, both noisy where the name is not "original"."""

    def __init__(self, *shape: int) -> None:
        self._shape, self.opened = shape, 0

    def __call__(self, path: Path, threads: int) -> SimpleNamespace:
        noise = 0.0 if path.name == "original" else 0.3
        self.opened += 1

        def answer(feed: Arrays) -> dict[str, np.ndarray]:
            scores = feed["x"] + noise * np.sin(1e3 * feed["x"])
            picture = np.broadcast_to(scores[:, :1], (len(scores), int(np.prod(self._shape))))
            return {"map": picture.reshape(-1, *self._shape).astype(np.float32), "scores": scores}

        return SimpleNamespace(run=answer, close=lambda: None)


def labels(metric: Metric, rows: Iterable[int]) -> np.ndarray:
    rng = np.random.default_rng(9)
    count = sum(rows)
    if metric.name in ("mae", "rmse"):
        return rng.standard_normal((count, CLASSES))
    if metric.name.startswith("label-"):
        return rng.integers(0, 2, (count, CLASSES))
    return rng.permutation(np.arange(count) % 5)


@pytest.mark.parametrize(
    "name", ["accuracy", "top5", "f1-macro", "label-accuracy", "label-f1", "mae", "rmse", "recall@1"]
)
@pytest.mark.parametrize("rows", [(1,) * 40, (32, 0, 7)], ids=["rows", "batches"])
def test_the_numbers_are_those_of_all_outputs_together(name: str, rows: tuple[int, ...], tmp_path: Path) -> None:
    metric, feeds, load = metrics.with_output(METRICS[name], "scores"), Seeds(rows), Network(3)
    wanted = labels(metric, rows)
    both = [list(run(Path(file), feeds, load)) for file in ("original", "changed")]  # type: ignore[arg-type]
    scores = [
        metrics.scores_of(metric, {"scores": np.concatenate([each["scores"] for each in outputs])}, wanted)
        for outputs in both
    ]
    judge = Judge(Path("original"), Runs(feeds=feeds, labels=wanted), Promise(metric=metric), load, folder=tmp_path)  # type: ignore[arg-type]
    for _ in range(2):
        found = judge.quality(Path("changed"))
        assert found.outputs == closeness.compare(*both)
        assert (found.original, found.changed) == tuple(metrics.value(metric, each) for each in scores)
        assert found.drop == accuracy.paired_drop(metric, *scores, 0.95)
    assert load.opened == 2 + 1 + 2, "the original is asked once"
    assert list(tmp_path.iterdir()) == [], "what is kept has no name, so that nothing is left of it"


def peak(count: int, metric: Metric | None) -> int:
    """Bytes that judging one file takes at most; an output is 256 kB."""
    rows = (1,) * count
    given = None if metric is None else labels(metric, rows)
    runs = Runs(feeds=Seeds(rows), labels=given)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        Judge(Path("original"), runs, Promise(metric=metric), Network(256, 256)).quality(Path("changed"))  # type: ignore[arg-type]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("metric", [None, METRICS["accuracy"]], ids=["closeness", "accuracy"])
def test_memory_does_not_grow_with_the_samples(metric: Metric | None) -> None:
    named = None if metric is None else metrics.with_output(metric, "scores")
    peak(5, named)  # what is imported or compiled once
    few, many = peak(20, named), peak(200, named)
    assert many < 1.1 * few


def test_what_is_too_large_or_no_number_is_asked_for_again(tmp_path: Path) -> None:
    asked = []

    def ask() -> Iterator[Arrays]:
        asked.append(1)
        yield from ({"y": np.full(100, index)} for index in range(3))

    def words() -> Iterator[Arrays]:
        yield {"y": np.array(["yes", "no"], object)}

    kept, again = KeptAnswers(ask, tmp_path), KeptAnswers(ask, tmp_path, most=1000)
    assert len(asked) == 2
    for answers in (kept, again, again):
        assert [int(each["y"][0]) for each in answers] == [0, 1, 2]
    assert len(asked) == 4
    first, second = iter(kept), iter(kept)
    assert [(int(a["y"][0]), int(b["y"][0])) for a, b in zip(first, second, strict=True)] == [(0, 0), (1, 1), (2, 2)]
    assert [each["y"].tolist() for each in KeptAnswers(words, tmp_path)] == [["yes", "no"]]


def test_what_the_disk_has_no_room_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    asked = []

    def ask() -> Iterator[Arrays]:
        asked.append(1)
        yield from ({"y": np.full(2, value)} for value in range(3))

    monkeypatch.setattr(np, "save", full)
    kept = KeptAnswers(ask)
    assert [float(each["y"][0]) for each in kept] == [0, 1, 2]
    assert len(asked) == 2
