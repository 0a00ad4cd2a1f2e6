"""The cells of the table on disk: made once, complete or absent, and made again when what they hang on changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgesmith.core import digest
from edgesmith.core.files import write_atomic

Cell = dict[str, Any]


def once(path: Path, key: Cell, make: Callable[[], Cell], file: Path | None = None) -> Cell:
    """The stored cell, or a new one.

    Args:
        path: JSON file of the cell.
        key: everything the cell depends on, JSON-able.
        make: makes it.
        file: what a cell with the status "written" has made besides; where it is gone, the cell is made again.

    A cell with the status "missing" (the quantizer is not installed) is not kept: the next run may find it.
    """
    wanted = digest.of_json(key)
    if path.exists():
        stored: Cell = json.loads(path.read_text())
        value: Cell = stored["value"]
        if stored["key"] == wanted and (file is None or value.get("status") != "written" or file.exists()):
            return value
    value = make()
    if value.get("status") != "missing":
        write_atomic(path, json.dumps({"key": wanted, "value": value}, indent=1))
    return value


def stored(path: Path) -> Cell | None:
    """What is stored, whatever it was made from; None where there is nothing."""
    if not path.exists():
        return None
    value: Cell = json.loads(path.read_text())["value"]
    return value
