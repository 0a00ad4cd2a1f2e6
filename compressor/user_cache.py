"""Results that were made before: found again by the digest of everything they depend on, in a user's folder."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..core import digest
from ..core.errors import EdgesmithError
from ..core.files import write_atomic

_MOST = 100  # entries kept of a kind; the oldest go
_T = TypeVar("_T")


def folder_of(kind: str) -> Path:
    """Where a user's results of a kind are (XDG Base Directory Specification: a relative path there is ignored)."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "edgesmith" / kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserCache:
    """One JSON file for each result, named by its key. Nobody depends on it being there."""

    folder: Path  # made when the first result is kept
    what: str  # is kept, in the plural
    same: str  # what was the same when they were found before
    anew: str  # what the user can do to have them made anew
    unkept: str  # and where they cannot be kept
    say: Callable[[str], None]  # gets a line where a result was found, was damaged, or could not be kept

    def once(
        self, key: Any, make: Callable[[], _T], to_json: Callable[[_T], Any], from_json: Callable[[Any], _T]
    ) -> _T:
        """What `make` returns, made now or found from an earlier call.

        Args:
            key: JSON-able; everything the result depends on.
        """
        path = self.folder / f"{digest.of_json(key)}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            content = stored["content"]
            if stored["sum"] != digest.of_json(content):
                raise ValueError("its content is not what was written")
            found = from_json(content)
            self.say(f"{self.what} found before {self.same}: {path}; {self.anew}")
            return found
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.say(f"{path}: cannot be used ({_line(error)}); the {self.what} are found anew")
        made = make()
        self._keep(path, to_json(made))
        return made

    def _keep(self, path: Path, content: Any) -> None:
        text = json.dumps({"sum": digest.of_json(content), "content": content}, allow_nan=False)
        try:
            write_atomic(path, text)
            written = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
            for old in written[_MOST:]:
                old.unlink(missing_ok=True)
        except (EdgesmithError, OSError) as error:  # a cache that cannot be written is no reason to fail
            self.say(f"{self.folder}: {self.what} are not kept ({_line(error.__cause__ or error)}); {self.unkept}")


def latencies(say: Callable[[str], None]) -> UserCache:
    """Of times that pruning measures of a network at other widths."""
    return UserCache(
        folder=folder_of("latency"),
        what="latencies of other widths",
        same="of the same networks on this machine",
        anew="delete it to measure them anew",
        unkept="set XDG_CACHE_HOME to a folder that can be written",
        say=say,
    )


def _line(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return next(iter((said or "").splitlines()), type(error).__name__)
