"""A directory in which nothing finished is done twice, and nothing half done is taken for finished."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core import digest
from ..core.errors import RunDirectoryError
from ..core.files import atomic_directory, locked, remove_partial, storage_errors, write_atomic

_MARK = "edgesmith-run.json"
DONE = "done.json"
_FORMAT = {"format": "edgesmith.run/1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """A finished piece of work."""

    path: Path  # its directory
    facts: dict[str, Any]  # what `make` returned
    seconds: float  # wall time of the making
    reused: bool  # it was there already


class RunDirectory:
    """`once` is the whole mechanism: stages, artefacts and measurements all go through it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the directory for this process; what a killed run left half done is removed.

        Raises:
            RunDirectoryError: in use by another run, not writable, or a directory with something else in it.
        """
        self._refuse_foreign()
        with locked(self.root):
            if not (self.root / _MARK).exists():
                write_atomic(self.root / _MARK, json.dumps(_FORMAT) + "\n")
            remove_partial(self.root)
            yield

    def once(self, name: str, key: Any, make: Callable[[Path, Path], dict[str, Any]]) -> Done:
        """The result of `make`, made now or found from an earlier run with the same key.

        Args:
            name: relative directory of the result: "stages/01-prune".
            key: JSON-able; everything the result depends on.
            make: (directory to fill, work directory that survives a kill) -> JSON-able facts about the result.
        """
        path, wanted = self.root / name, digest.of_json(key)
        found = self.finished(name, key)
        if found is not None:
            return found
        work = self.root / "work" / f"{name.replace('/', '-')}-{wanted[:12]}"
        with storage_errors(self.root):
            work.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with atomic_directory(path) as partial:
            facts = make(partial, work)
            seconds = time.monotonic() - started
            done = {"key": wanted, "facts": facts, "seconds": seconds, "files": _file_digests(partial)}
            (partial / DONE).write_text(json.dumps(done, indent=1, allow_nan=False), encoding="utf-8")
        shutil.rmtree(work, ignore_errors=True)
        return Done(path=path, facts=facts, seconds=seconds, reused=False)

    def finished(self, name: str, key: Any) -> Done | None:
        """The result if it is there, was made with this key, and its files are still what they were."""
        path = self.root / name
        try:
            done = json.loads((path / DONE).read_text(encoding="utf-8"))
            whole = done["key"] == digest.of_json(key) and done["files"] == _file_digests(path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Done(path=path, facts=done["facts"], seconds=done["seconds"], reused=True) if whole else None

    def tidy(self, keep: set[str]) -> None:
        """Remove results and unfinished work of recipes that are no longer run here."""
        for name in ("stages", "artifacts", "measurements"):
            for path in sorted((self.root / name).glob("*")):
                if f"{name}/{path.name}" not in keep:
                    shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self.root / "work", ignore_errors=True)

    def _refuse_foreign(self) -> None:
        if self.root.is_file():
            raise RunDirectoryError(f"{self.root}: is a file; choose a directory with --out")
        if not self.root.is_dir() or (self.root / _MARK).exists():
            return
        inside = [
            path.name for path in self.root.iterdir() if path.name != ".lock" and not path.name.startswith(".partial-")
        ]
        if inside:
            raise RunDirectoryError(
                f"{self.root}: not a run directory and not empty (it holds {min(inside)}); choose another with --out"
            )


def _file_digests(folder: Path) -> dict[str, str]:
    return {
        path.name: digest.of_file(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != DONE
    }


def model_key(name: str, identity: str, seed: int) -> dict[str, Any]:
    """Everything that a model of the task's depends on, as `RunDirectory.once` wants it."""
    return {"model": name, "task": identity, "seed": seed}
