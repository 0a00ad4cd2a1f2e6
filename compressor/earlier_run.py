"""`compress --like RUN`: what an earlier run chose by its measurements, for a run that does the same work again.

No clock is the same twice: where two forms of a file are as fast, the same work may come to another of them. A release
that is built again is to have the same files, so that it takes the choices over; what it claims it measures itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .lock import LOCK, read_lock
from .run_directory import Done, RunDirectory


class EarlierRun:
    """Its results by place and key, where it ran with these versions on this machine.

    Args:
        root: directory of a finished run.
        machine: what `environment.describe` says now.

    Raises:
        RunDirectoryError, ArtifactError: no finished run is there.
    """

    def __init__(self, root: Path, machine: Mapping[str, Any]) -> None:
        self._root = root
        there, here = read_lock(root / LOCK).environment, json.loads(json.dumps(machine))
        self._others = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
        self._taken: list[str] = []

    def found(self, place: str, key: Any) -> Done | None:
        """The result of the same work there, whole and unchanged, if it may be taken over."""
        return None if self._others else RunDirectory(self._root).finished(place, key)

    def took(self, place: str) -> None:
        """The choice of this place was taken over."""
        self._taken.append(place)

    def said(self) -> str:
        """What was taken over, for the user."""
        if self._taken:
            what = f"chosen as there, not searched again: {', '.join(self._taken)}"
        elif self._others:
            what = f"nothing was taken over, for it ran with other {', '.join(self._others)}"
        else:
            what = (
                "nothing was taken over: all was finished here before, or no choice is there, whole and unchanged, of "
                "the same task, recipe and weights"
            )
        return f"like {self._root}: {what}"
