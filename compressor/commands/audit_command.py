"""`edgesmith audit`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import math
from pathlib import Path
from typing import Any

from ...core.errors import ExitCode

_LIMITS = ("class_drop", "slice_drop", "corruption_drop", "disparity")


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "audit",
        help="what compression changed that the mean hides",
        description="Hold a finished run's original and its file side by side where the mean does not look: classes, "
        "slices, the gap between them, corrupted and slightly disturbed test data, and where both models look. Writes "
        "RUN_DIR/audit.json and a section of report.html.",
        epilog="exit codes: 0 every limit on these is kept, or none is set; 3 one is missed, 4 one is unproven, 2 not "
        "usable",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a finished run")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        type=_limit,
        metavar="NAME=VALUE",
        help=f"in place of the recipe's: {', '.join(_LIMITS)}, in the metric's unit; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print audit.json instead of tables")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Audit and print.

    Raises:
        UsageError: what cannot be opened, see `opened_run.open_run`.
    """
    from rich.console import Console

    from ...benches.audits.audit import to_json
    from ...benches.audits.audit_text import print_audit
    from ..audit_run import audit_run
    from ..opened_run import open_run
    from ..progress import Progress

    opened = open_run(options.run)
    progress = Progress(None if options.json else Console(stderr=True))
    found = audit_run(opened, dict(options.limit), progress)
    if options.json:
        print(to_json(found), end="")
    else:
        print_audit(found, opened.run.report, Console())
    return found.verdict.exit_code if found.limits else ExitCode.PASS


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name not in _LIMITS or not math.isfinite(number):
        known = ", ".join(_LIMITS)
        raise argparse.ArgumentTypeError(f"'{text}': write it as NAME=VALUE, NAME one of {known}: corruption_drop=0.02")
    return name, number
