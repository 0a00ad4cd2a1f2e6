"""Files that are complete or absent, and a directory only one run may write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from .errors import RunDirectoryError, StorageError

_PARTIAL = ".partial-"


def storage_error(error: OSError, path: Path) -> StorageError | RunDirectoryError:
    """The user-facing form of an operating-system error that happened while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"{path}: the disk is full; free some space and run the same command again: it goes on from here"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return RunDirectoryError(f"{path}: cannot write here ({error.strerror}); choose another directory with --out")
    return StorageError(f"{path}: {error.strerror or error}")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `StorageError` or `RunDirectoryError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; moved into place when the block ends well, removed when it does not.

    Raises:
        StorageError, RunDirectoryError: the directory cannot be written.
    """
    partial = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_path(path) as partial:
        partial.write_bytes(data if isinstance(data, bytes) else data.encode())


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory that becomes `path` when the block ends well; a `path` that was there is replaced as a whole.

    A kill leaves the old directory, the new one or none, and what `remove_partial` clears away.

    Raises:
        StorageError, RunDirectoryError: the directory cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")
        replaced = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                os.replace(path, replaced)  # deleting it in place could be cut short and leave half of it
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def remove_partial(root: Path) -> None:
    """Remove what killed runs left unfinished under `root`. Call it holding the lock of `root` only."""
    for leftover in sorted(root.rglob(f"{_PARTIAL}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process alone; the kernel gives it back when the process ends, however it ends.

    Raises:
        RunDirectoryError: another process holds it, or it cannot be written.
    """
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{directory}: another run is writing here; wait for it, or choose another directory with --out"
            ) from error
        except OSError as error:  # a file system without locks
            raise storage_error(error, directory) from error
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_file_name(name: str) -> str:
    """A name that a user has given, a path among them, as one part of a path; two names never become one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
