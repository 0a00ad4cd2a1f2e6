"""The user's arrays for `edgesmith init`: read from .npz files, checked, and cut into splits of known sizes."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ...core import digest
from ...core.errors import DataError

LABELS, TEST = "labels", "test_"
HOW_TO_WRITE = (
    "write one with three lines of numpy:\n"
    "  import numpy as np\n"
    "  inputs, labels = ...  # your own samples, prepared as in training: (N, ...) and (N,)\n"
    '  np.savez("data.npz", input=inputs, labels=labels)  # one array per input of the model, by its name'
)
_MOST_TEST, _MOST_VALIDATION, _SHARE = 10_000, 5_000, 0.2
_FEWEST = 20  # with less, no split of it proves anything


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Arrays by name, samples on axis 0; `labels` apart."""

    path: Path
    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    test: "Data | None" = None  # a test split of its own
    kept_in: Literal["one file", "prefix", "files"] = "one file"  # where that split is
    column: bool = False  # the file has its classes as (N, 1)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def label_kind(self) -> Literal["classes", "dense", "numbers", "none"]:
        """What the labels say: one class per sample, one per position, or real numbers."""
        if self.labels is None:
            return "none"
        if self.labels.dtype.kind == "f":
            return "numbers"
        return "classes" if self.labels.ndim == 1 else "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many samples go where; the first three add up to those without their copies, but for a test of its own."""

    train: int
    validation: int
    test: int
    copies: int  # samples that occur before, left out so that no copy of a test sample is trained on


def read(path: Path | None, test: Path | None, what: str) -> Data:
    """Open the user's data.

    Args:
        path: .npz file with one array per input, and `labels`; arrays that start with `test_` are the test split.
        test: .npz file of the same arrays that holds the test split, or None.
        what: the model, for errors.

    Raises:
        DataError: missing or unreadable files, pickled arrays, arrays that do not belong together, NaN.
    """
    if path is None:
        raise DataError(
            f"{what}: --data is missing: a verdict needs real samples, made-up ones are never used; {HOW_TO_WRITE}"
        )
    arrays = read_arrays(path)
    prefixed = {name.removeprefix(TEST): array for name, array in arrays.items() if name.startswith(TEST)}
    if prefixed and test is not None:
        raise DataError(f"{path}: has arrays named '{TEST}...' and --test names {test}; give one test split")
    found = _data(path, {name: array for name, array in arrays.items() if not name.startswith(TEST)})
    if not prefixed and test is None:
        if len(found) < _FEWEST:
            raise DataError(f"{path}: {len(found)} samples are too few to split; give at least {_FEWEST}, better 1,000")
        return found
    own = _data(path, prefixed) if prefixed else _data(test or path, read_arrays(test or path))
    _check_same(found, own)
    return dataclasses.replace(found, test=own, kept_in="prefix" if prefixed else "files")


def sizes(data: Data) -> Sizes:
    """A fifth to judge on and a fifth to choose on, at most 10,000 and 5,000; the rest is trained on."""
    digests = digest.of_samples(dict(data.inputs))
    copies = len(digests) - len(set(digests)) if data.test is None else 0
    count = len(data) - copies
    test = min(_MOST_TEST, round(_SHARE * count)) if data.test is None else len(data.test)
    validation = min(_MOST_VALIDATION, round(_SHARE * count))
    train = count - validation - (test if data.test is None else 0)
    if min(test, validation, train) < 2:
        raise DataError(f"{data.path}: {count} different samples are too few to split; give at least {_FEWEST}")
    return Sizes(train=train, validation=validation, test=test, copies=copies)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):  # an array closes nothing
            raise DataError(f"{path}: holds one array without a name; {HOW_TO_WRITE}")
        with file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise DataError(f"{path}: cannot read the data: {error.strerror or error}; {HOW_TO_WRITE}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = (
            "it holds pickled Python objects, which are never opened" if "allow_pickle" in str(error) else str(error)
        )
        raise DataError(f"{path}: not a plain .npz file: {reason}; {HOW_TO_WRITE}") from error


def _data(path: Path, arrays: Mapping[str, np.ndarray]) -> Data:
    inputs = {name: array for name, array in arrays.items() if name != LABELS}
    if not inputs:
        raise DataError(f"{path}: no input arrays, it has: {', '.join(arrays) or 'nothing'}; {HOW_TO_WRITE}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(f"{path}: every array needs the same number of samples on axis 0, got {lengths}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"{path}: '{name}' is {array.dtype}; arrays hold numbers: tokens as int64, images as float32"
            )
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise DataError(f"{path}: '{name}' holds NaN or infinity; clean the data")
    labels = arrays.get(LABELS)
    column = labels is not None and labels.dtype.kind in "iub" and labels.ndim == 2 and labels.shape[1] == 1
    if labels is not None and column:
        labels = labels[:, 0]  # the generated task does the same
    return Data(path=path, inputs=inputs, labels=labels, column=column)


def _check_same(data: Data, test: Data) -> None:
    here, there = ({n: (str(a.dtype), a.shape[1:]) for n, a in part.inputs.items()} for part in (data, test))
    if here != there or (data.labels is None) != (test.labels is None):
        raise DataError(f"{test.path}: the test split has {_show(test)}, the rest {_show(data)}; they must agree")


def _show(data: Data) -> str:
    parts = [f"{name} {array.dtype} {array.shape}" for name, array in data.inputs.items()]
    return ", ".join([*parts, "no labels" if data.labels is None else f"labels {data.labels.dtype}"])
