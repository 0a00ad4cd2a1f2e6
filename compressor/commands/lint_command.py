"""`edgesmith lint`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ExitCode, UsageError

if TYPE_CHECKING:  # ONNX is heavy, and the help is printed without it
    from ...exporters.linting.lint import Finding
    from ...exporters.linting.lint_file import Linted

_EPILOG = "exit codes: 0 nothing is refused (slow and risky ones are printed), 2 not usable, 3 something is refused"


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "lint",
        help="what a target would refuse in an ONNX file, and how to mend it",
        description="Check an ONNX file against what is known of a target; nothing of the target is needed. --fix "
        "writes a file without what can be rewritten so that it computes the same.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--target", required=True, metavar="T", help="such as onnxruntime-cpu or tensorrt")
    parser.add_argument("--fix", action="store_true", help="write a fixed file, lint it again and compare the two")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it goes (default: MODEL.fixed.onnx)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Lint, fix where asked to, print.

    Raises:
        UsageError: an unknown target, --out without --fix, a file that cannot be read.
    """
    from ...core.tables import unknown
    from ...exporters.linting.lint import refusals
    from ...exporters.linting.lint_file import as_json, fix_file, lint_file
    from ...exporters.targets.targets import TARGETS

    if options.target not in TARGETS:
        raise unknown(options.target, TARGETS, "--target")
    if options.out is not None and not options.fix:
        raise UsageError(f"--out {options.out}: nothing is written without --fix")
    fixing = options.fix
    linted = (
        fix_file(options.model, options.target, options.out) if fixing else lint_file(options.model, options.target)
    )
    print(json.dumps(as_json(linted), allow_nan=False) if options.json else "\n".join(lines(linted, fixing)))
    return ExitCode.LIMIT_MISSED if refusals(linted.left if fixing else linted.findings) else ExitCode.PASS


def lines(linted: "Linted", fixing: bool) -> list[str]:
    """What is printed."""
    said = [f"{linted.path}, {linted.target}: {_count(linted.findings)}", *_listed(linted.findings)]
    if not fixing:
        fixable = sum(finding.fixable for finding in linted.findings)
        return [*said, f"{fixable} of them can be fixed: --fix"] if fixable else said
    if linted.out is None:
        return [*said, *linted.failures, "nothing could be fixed; nothing was written"]
    said += [f"{linted.out}:", *(f"  {change}" for change in (*linted.changes, *linted.failures))]
    return [*said, f"  {_compared(linted)}", f"  {_count(linted.left)}", *_listed(linted.left)]


def _listed(findings: Sequence["Finding"]) -> list[str]:
    return [f"  {finding.severity}: {finding.text}" for finding in findings]


def _count(findings: Sequence["Finding"]) -> str:
    counts = {kind: sum(finding.severity == kind for finding in findings) for kind in ("refused", "risky", "slow")}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "nothing found"


def _compared(linted: "Linted") -> str:
    found = linted.difference
    if found is None:
        return f"not compared with the original: {linted.not_compared}"
    return (
        f"its outputs in ONNX Runtime are at most {found.largest:.3g} from the original's "
        f"('{found.output}', values up to {found.magnitude:.3g})"
    )
