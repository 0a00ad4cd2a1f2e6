"""A clock that is set while a run is on (NTP, a device without a battery) changes no duration: nothing asks it for one.

`time.strftime` writes the log's dates, and the calibration cache throws its oldest file away by the date of the file;
neither is a measurement.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from .test_imports import PACKAGE, sources

SET_BY_HAND = {"time", "time_ns", "clock_gettime"}  # of `time`; monotonic, perf_counter and process_time are not


def asked(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything that reads the time of day."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "time" and node.attr in SET_BY_HAND:
                yield node.lineno, f"time.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from ((node.lineno, f"time.{each.name}") for each in node.names if each.name in SET_BY_HAND)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(each.name for each in node.names)]
            yield from ((node.lineno, "datetime") for name in names if name.split(".")[0] == "datetime")


def test_no_duration_hangs_on_the_time_of_day() -> None:
    found = [f"{path.relative_to(PACKAGE)}:{line} {name}" for path in sources() for line, name in asked(path)]
    assert found == []


def test_the_lint_finds_what_it_is_there_for(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import time\nfrom time import time_ns\nimport datetime\nstart = time.time()\nfine = time.monotonic()\n"
        "when = time.strftime('%Y')\n"
    )
    assert sorted(asked(tmp_path / "a.py")) == [(2, "time.time_ns"), (3, "datetime"), (4, "time.time")]
