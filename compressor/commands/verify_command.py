"""`edgesmith verify`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ExitCode, UsageError
from .argument_types import factor

if TYPE_CHECKING:  # torch is heavy, and the help is printed without it
    from ..lock import Difference, Verified
    from ..remeasure import Again

_DIGEST = 64  # hexadecimal digits of a SHA-256


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "verify",
        help="whether a run is still what its lock says",
        description="Hold a finished run to its edgesmith.lock: recipe, files and predictions by their digests, the "
        "task by its data and code, and the judged file by what it answers on the test data now. With --measure both "
        "files are evaluated and timed again, and held to the report by their intervals.",
        epilog="exit codes: 0 the same, 2 not usable, 3 something differs, 4 not all could be compared",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a finished run")
    parser.add_argument(
        "--measure", action="store_true", help="evaluate and time original and final again; takes as long as in the run"
    )
    parser.add_argument(
        "--slower",
        type=factor,
        metavar="FACTOR",
        help="with --measure: both files together may take at most FACTOR times as long as in the report, on the same "
        "machine (default: beyond 1.5 it is said, and changes no exit code)",
    )
    parser.add_argument("--json", action="store_true", help="print what differs as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Verify and print.

    Raises:
        UsageError: no lock, or a task that cannot be loaded; --slower without --measure.
    """
    from ..lock import verify

    if options.slower is not None and not options.measure:
        raise UsageError("--slower: nothing is timed without --measure; give both")
    found = verify(options.run)
    again = _measured(options) if options.measure and found.same else ()
    if options.json:
        tree = dataclasses.asdict(found) | {
            "same": found.same,
            "measured": [dataclasses.asdict(each) for each in again],
        }
        print(json.dumps(tree, allow_nan=False))
    else:
        if again:
            _print(again)
        print(*lines(found, again), sep="\n")
    statuses = {each.status for each in again}
    if not found.same or "differs" in statuses:
        return ExitCode.LIMIT_MISSED
    return ExitCode.UNPROVEN if "not compared" in statuses else ExitCode.PASS


def _measured(options: argparse.Namespace) -> "tuple[Again, ...]":
    from rich.console import Console

    from ..progress import Progress
    from ..remeasure import measure_again

    return measure_again(options.run, Progress(None if options.json else Console(stderr=True)), options.slower)


def _print(again: "Sequence[Again]") -> None:
    from rich.console import Console

    from ...benches.report.terminal import add_row, new_table

    table = new_table("Measured again", "", "figure", "in the report", "now", "note")
    for column in table.columns:
        column.justify = "left"
    for each in again:
        add_row(table, each.status, each.what, each.report, each.now, each.note)
    Console().print(table)


def lines(found: "Verified", again: "Sequence[Again]" = ()) -> list[str]:
    """What is printed, the verdict last."""
    said = [f"asked again: {found.answers}"]
    said += [f"differs: {_text(each)}" for each in found.differences]
    said += [f"elsewhere: {_text(each)}" for each in found.environment]
    if not found.same:
        return [*said, f"{found.run}: {len(found.differences)} thing(s) differ from its lock"]
    counts = {status: sum(each.status == status for each in again) for status in ("differs", "not compared", "noted")}
    measured = (
        [f"{counts['differs']} figure(s) differ from its report beyond what is allowed"] if counts["differs"] else []
    )
    measured += [f"{counts['not compared']} could not be compared"] if counts["not compared"] else []
    if again and not measured:
        measured = ["measured again, and within the intervals of its report"]
    if counts["noted"]:
        measured.append(f"{counts['noted']} time(s) noted, which stop nothing")
    return [*said, f"{found.run}: {'; '.join(['what its lock says', *measured])}"]


def _text(one: "Difference") -> str:
    locked, found = (text[:12] if len(text) == _DIGEST else text for text in (one.locked, one.found))
    return f"{one.what}: locked {locked}, found {found}"
