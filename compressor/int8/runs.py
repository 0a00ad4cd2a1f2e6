"""Real inputs for an ONNX file, one feed a run: from an .npz or a folder of runs; `split_runs` has those of a split."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...benches.metrics.metrics import METRICS
from ...core import digest
from ...core.errors import DataError
from ...core.task import Metric
from ...core.values import Arrays, TensorSpec
from ..starter import starter_data

LABELS = starter_data.LABELS
BATCH = 32  # samples of a run of a task's split, where nothing is timed
VALIDATION_SAMPLES = 2000  # that a choice between forms is made on
_FEWEST = 4  # two to calibrate with, one to choose on, one to judge on
_SHARES = (0.5, 0.25)  # of the runs: to calibrate with, to choose on; the rest judges
_MOST_TO_CALIBRATE = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """Feeds in the order they are run; `labels` belong to the rows of all outputs, one run after the other."""

    feeds: Sequence[Arrays]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.feeds)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunData:
    """What quantizing a file needs: runs to find ranges with, to choose on, and to judge on, none of them shared."""

    calibration: Runs
    validation: Runs
    test: Runs
    metric: Metric | None = None  # where there are labels; reads the first output unless it names another


def from_file(path: Path, inputs: Sequence[TensorSpec]) -> RunData:
    """An .npz with one array per input, samples on axis 0, or a folder of .npz files that hold one run each.

    Either may hold `labels` too, of the rows of each run.

    Args:
        path: a sample has the input's own axes (`(N, 3, 32, 32)` for an input `(batch, 3, 32, 32)`: a run is one row),
            or one axis less than its array (`(N, 2, 1, 64)` for a state `(2, 1, 64)`: a run is one element).
        inputs: the model's.

    Raises:
        DataError: unreadable files, arrays that do not fit the inputs, NaN, too few runs.
    """
    feeds, labels = _folder(path, inputs) if path.is_dir() else _one_file(path, inputs)
    if len(feeds) < _FEWEST:
        raise DataError(
            f"{path}: {len(feeds)} run(s) are too few to calibrate, choose and judge; give at least {_FEWEST}"
        )
    _check_varied(path, feeds)
    return _parted(path, feeds, labels)


def refuse_one_hot(path: Path, data: RunData, outputs: Sequence[TensorSpec]) -> None:
    """Refuse labels `(N, C)` of which each row is a class; where an output has positions they may stand for those.

    Raises:
        DataError: says how they become class numbers.
    """
    parts = [part.labels for part in (data.validation, data.test) if part.labels is not None]
    if not parts or any(len(spec.shape) > 2 for spec in outputs):
        return
    labels = np.concatenate(parts)
    if labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
        raise DataError(
            f"{path}: the labels are one-hot, (N, {labels.shape[1]}); give class numbers (N,), as "
            "labels.argmax(axis=1) makes them"
        )


def _is_one_hot(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def batched(
    feeds: Sequence[Arrays], inputs: Sequence[TensorSpec], size: int | None, count: int
) -> dict[int, Sequence[Arrays]]:
    """Up to `count` feeds of `size` rows on axis 0 of every input, under that size; None: as the feeds are.

    Raises:
        DataError: fewer rows than `size` in all; an input that does not take so many.
    """
    if size is None:
        rows_each = _rows(feeds[0])
        return {rows_each: list(itertools.islice((feed for feed in feeds if _rows(feed) == rows_each), count))}
    _check_batch(size, inputs)
    first = feeds[0]
    names = list(first)
    needed = list(feeds[: -(-size * count // max(1, _rows(first)))])  # a split's are fetched each time
    rows = {name: np.concatenate([feed[name] for feed in needed]) for name in names}
    total = len(rows[names[0]])
    if total < size:
        raise DataError(f"--batch {size}: the data has {total} rows to time with; give more, or a smaller batch")
    found: list[Arrays] = [
        {name: array[start : start + size] for name, array in rows.items()}
        for start in range(0, total - size + 1, size)
    ]
    return {size: found[:count]}


def _check_batch(size: int, inputs: Sequence[TensorSpec]) -> None:
    for spec in inputs:
        if not spec.shape or (isinstance(spec.shape[0], int) and spec.shape[0] != size):
            shape = ", ".join(map(str, spec.shape))
            raise DataError(f"--batch {size}: input '{spec.name}' is ({shape}) in every run; leave --batch out")


def _rows(feed: Arrays) -> int:
    first = next(iter(feed.values()))
    return len(first) if first.ndim else 1


def _parted(path: Path, feeds: Sequence[Arrays], labels: Sequence[np.ndarray] | None) -> RunData:
    """Cut in a seeded order, so that sorted data does not calibrate on one class and judge on another.

    A run that occurred before is left out: its copy would judge what it was calibrated with.
    """
    digests = [digest.of_arrays(feed) for feed in feeds]
    order = np.random.default_rng(0).permutation(np.unique(digests, return_index=True)[1])
    if len(order) < _FEWEST:
        raise DataError(f"{path}: {len(order)} different run(s) are too few; give at least {_FEWEST}")
    first = max(2, round(_SHARES[0] * len(order)))
    second = first + max(1, round(_SHARES[1] * len(order)))

    def part(chosen: np.ndarray) -> Runs:
        own = None if labels is None else np.concatenate([labels[i] for i in chosen])
        return Runs(feeds=[feeds[i] for i in chosen], labels=own)

    return RunData(
        calibration=part(order[: min(first, _MOST_TO_CALIBRATE)]),
        validation=part(order[first:second]),
        test=part(order[second:]),
        metric=None if labels is None else _metric(labels[0]),
    )


def _check_varied(path: Path, feeds: Sequence[Arrays]) -> None:
    """Refuse data without a range. One input may be constant, as the first state of a recurrent network is."""
    floats = [name for name, array in feeds[0].items() if array.dtype.kind == "f"]
    first = {name: feeds[0][name].reshape(-1)[0] for name in floats}
    if floats and all(bool((feed[name] == first[name]).all()) for feed in feeds for name in floats):
        names = ", ".join(f"'{name}' is {first[name]:g}" for name in floats)
        raise DataError(f"{path}: input {names} everywhere; no range can be found: give real samples")


def _metric(labels: np.ndarray) -> Metric:
    """What labels of this kind are judged by, as `init` chooses it."""
    if labels.dtype.kind == "f":
        return METRICS["mae"]
    return METRICS["accuracy" if labels.ndim == 1 else "miou"]


def _one_file(path: Path, inputs: Sequence[TensorSpec]) -> tuple[list[Arrays], Sequence[np.ndarray] | None]:
    arrays = starter_data.read_arrays(path)
    given = arrays.pop(LABELS, None)
    feeds = _feeds(path, arrays, inputs)
    if given is None or not feeds:
        return feeds, None
    labels = _labels(given)
    if not len(labels) or len(labels) % len(feeds):
        raise DataError(f"{path}: {len(labels)} labels for {len(feeds)} runs; every run needs as many")
    return feeds, np.split(labels, len(feeds))


def _labels(array: np.ndarray) -> np.ndarray:
    """One for each row; a column of classes, as tables have it, is a vector of them."""
    column = array.dtype.kind in "iub" and array.ndim == 2 and array.shape[1] == 1
    return array[:, 0] if column else np.atleast_1d(array)


def _folder(path: Path, inputs: Sequence[TensorSpec]) -> tuple[list[Arrays], Sequence[np.ndarray] | None]:
    files = sorted(path.glob("*.npz"))
    if not files:
        found = ", ".join(sorted({file.suffix or file.name for file in path.iterdir()})[:5]) or "nothing"
        raise DataError(
            f"{path}: no .npz files (found: {found}); give one .npz file a run with one array per input, or, for "
            "pictures and sounds, a task.py that reads and prepares them"
        )
    feeds: list[Arrays] = []
    labels: dict[Path, np.ndarray] = {}
    for file in files:
        arrays = starter_data.read_arrays(file)
        _check_names(file, arrays, inputs)
        for spec in inputs:
            _check_run(file, spec, arrays[spec.name])
        feeds.append({spec.name: arrays[spec.name] for spec in inputs})
        if LABELS in arrays:
            labels[file] = _labels(arrays[LABELS])
    if labels and len(labels) < len(files):
        without = next(file.name for file in files if file not in labels)
        raise DataError(f"{path}: {without} has no labels, and other runs have; give every run its own, or none")
    _check_alike(path, labels)
    return feeds, list(labels.values()) or None


def _check_alike(path: Path, labels: Mapping[Path, np.ndarray]) -> None:
    """Refuse labels that are no rows of one array, or that would be judged by another metric than the first."""
    first = next(iter(labels), None)
    for file, array in labels.items():
        assert first is not None
        if _row(array) != _row(labels[first]):
            given, wanted = (f"{each.dtype} {each.shape}" for each in (array, labels[first]))
            raise DataError(
                f"{path}: {file.name} has labels {given}, and {first.name} has {wanted}; they must be of one kind, and "
                "of one shape but for how many there are"
            )


def _row(labels: np.ndarray) -> tuple[str, tuple[int, ...]]:
    kind = labels.dtype.kind
    return "i" if kind in "iub" else kind, labels.shape[1:]


def _feeds(path: Path, arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> list[Arrays]:
    _check_names(path, arrays, inputs)
    cut = {spec.name: list(_runs_of(path, spec, arrays[spec.name])) for spec in inputs}
    counts = {name: len(runs) for name, runs in cut.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"{path}: every array needs the same number of runs, got {counts}")
    return [{name: runs[i] for name, runs in cut.items()} for i in range(next(iter(counts.values())))]


def _runs_of(path: Path, spec: TensorSpec, array: np.ndarray) -> Iterator[np.ndarray]:
    if array.ndim == len(spec.shape) + 1:
        for row in array:
            run = np.asarray(row)  # of a vector it is a number, which no runtime takes
            _check_run(path, spec, run)
            yield run
        return
    first = spec.shape[0] if spec.shape else 1
    size = first if isinstance(first, int) and first > 0 else 1
    for start in range(0, len(array) - size + 1 if array.ndim else 0, size):
        _check_run(path, spec, array[start : start + size])
        yield array[start : start + size]


def _check_names(path: Path, arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> None:
    wanted = [spec.name for spec in inputs]
    missing, extra = sorted(set(wanted) - set(arrays)), sorted(set(arrays) - set(wanted) - {LABELS})
    if missing or extra:
        what = f"no array for input '{missing[0]}'" if missing else f"an array '{extra[0]}' that is no input"
        raise DataError(f"{path}: {what}; the model's inputs are {', '.join(wanted)}, the arrays {', '.join(arrays)}")


def _check_run(path: Path, spec: TensorSpec, run: np.ndarray) -> None:
    sizes = zip(run.shape, spec.shape, strict=False)
    fits = run.ndim == len(spec.shape) and all(isinstance(wanted, str) or size == wanted for size, wanted in sizes)
    if str(run.dtype) != spec.dtype or not fits:
        shape = ", ".join(map(str, spec.shape))
        raise DataError(
            f"{path}: input '{spec.name}' must be {spec.dtype} ({shape}) in each run, got {run.dtype} {run.shape}"
            + _hint(spec, run)
        )
    if not run.size:
        raise DataError(f"{path}: input '{spec.name}' is empty: {run.shape}")
    if run.dtype.kind == "f" and not bool(np.isfinite(run).all()):
        raise DataError(f"{path}: input '{spec.name}' holds NaN or infinity; clean the data")


def _hint(spec: TensorSpec, run: np.ndarray) -> str:
    """The likeliest cause of an array that does not fit."""
    if run.ndim == len(spec.shape) == 4 and (run.shape[3], *run.shape[1:3]) == spec.shape[1:]:
        return "; it looks like (N, H, W, C): transpose it with array.transpose(0, 3, 1, 2)"
    if str(run.dtype) != spec.dtype:
        return f"; convert it with array.astype(np.{spec.dtype}), scaled as in training"
    return ""
