"""`edgesmith verify`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ExitCode

if TYPE_CHECKING:  # torch is heavy, and the help is printed without it
    from ..lock import Difference, Verified

_DIGEST = 64  # hexadecimal digits of a SHA-256


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "verify",
        help="whether a run is still what its lock says",
        description="Hold a finished run to its edgesmith.lock: recipe, files and predictions by their digests, the "
        "task by its data and code, and the judged file by what it answers on the test data now.",
        epilog="exit codes: 0 the same, 2 not usable, 3 something differs",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a finished run")
    parser.add_argument("--json", action="store_true", help="print what differs as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Verify and print.

    Raises:
        UsageError: no lock, or a task that cannot be loaded.
    """
    from ..lock import verify

    found = verify(options.run)
    if options.json:
        print(json.dumps(dataclasses.asdict(found) | {"same": found.same}, allow_nan=False))
    else:
        print(*lines(found), sep="\n")
    return ExitCode.PASS if found.same else ExitCode.LIMIT_MISSED


def lines(found: "Verified") -> list[str]:
    """What is printed, the verdict last."""
    said = [f"asked again: {found.answers}"]
    said += [f"differs: {_text(each)}" for each in found.differences]
    said += [f"elsewhere: {_text(each)}" for each in found.environment]
    count = len(found.differences)
    return [*said, f"{found.run}: {'what its lock says' if found.same else f'{count} thing(s) differ from its lock'}"]


def _text(one: "Difference") -> str:
    locked, found = (text[:12] if len(text) == _DIGEST else text for text in (one.locked, one.found))
    return f"{one.what}: locked {locked}, found {found}"
