"""What a file answers to some runs, on disk: memory does not depend on how many runs there are."""

import errno
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ...core.values import Arrays

_MOST_BYTES = 2**32
Ask = Callable[[], Iterable[Arrays]]


class KeptAnswers(Iterable[Arrays]):
    """Asked for once and kept in a file without a name, which is gone with this object, or with the process.

    Args:
        ask: gives the outputs, run by run; called for each pass where they are too large to be kept, or no numbers.
        folder: on whose disk they are kept; None: where temporary files are.
        most: bytes that are kept.
    """

    def __init__(self, ask: Ask, folder: Path | None = None, most: int = _MOST_BYTES) -> None:
        self._ask = ask
        self._names: tuple[str, ...] = ()
        self._runs = 0
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # it lives as long as this object
        weakref.finalize(self, file.close)
        self._file: IO[bytes] | None = file
        for answers in ask():
            if not (file.tell() <= most and _written(answers, file)):
                file.close()  # what there is no room for is asked for again
                self._file = None
                break
            self._names, self._runs = tuple(answers), self._runs + 1

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self._ask()) if self._file is None else self._read(self._file)

    def _read(self, file: IO[bytes]) -> Iterator[Arrays]:
        position = 0  # of this pass: there may be another one
        for _ in range(self._runs):
            file.seek(position)
            answers = {name: np.load(file) for name in self._names}
            position = file.tell()
            yield answers


def _written(answers: Arrays, file: IO[bytes]) -> bool:
    """False: they are no numbers, or the disk is full."""
    if any(array.dtype.hasobject for array in answers.values()):
        return False
    try:
        for array in answers.values():
            np.save(file, array)
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True
