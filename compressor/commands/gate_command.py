"""`edgesmith gate`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import dataclasses
import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ...core.errors import EdgesmithError, UsageError

if TYPE_CHECKING:  # heavy, and the help is printed without them
    from ...benches.gates.finished import Finished
    from ...benches.gates.gate_check import Gate
    from ...benches.gates.last_release import Change
    from ...core.task import Metric

_EPILOG = """exit codes: 0 every check is kept and proven, 3 one has failed, 4 one is unproven, 2 not usable (a baseline
of another task, target or test split among them)"""


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "gate",
        help="a finished run against its limits and the last release: one exit code for a release build",
        description="Judge a finished run again: its files, its own limits, and every figure that a limit is set on "
        "against the last release's report. Nothing is measured anew, unless the baseline is a run directory: then its "
        "file is timed beside the new one.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a finished run")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="REPORT.json|RUN_DIR",
        help="report.json of the last release, beside its predictions; or its run directory, whose file is then timed "
        "beside the new one",
    )
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        type=_margin,
        metavar="NAME=VALUE",
        help="how much worse than the last release is let through: drop, negative_flips, class_drop, slice_drop (in "
        "the metric's unit; default: the run's own limits), speedup, latency_ms, peak_memory (0.05), file (0.01), "
        "macs, params (0); repeatable",
    )
    parser.add_argument(
        "--ratchet", action="store_true", help="make a better run the new baseline; the first one where there is none"
    )
    parser.add_argument("--junit", type=Path, metavar="FILE.xml", help="write JUnit XML too, one case per check")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="write a summary for a pull request too")
    parser.add_argument(
        "--github",
        action="store_true",
        help="print annotations of GitHub Actions too; append the summary to $GITHUB_STEP_SUMMARY where it is set",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Judge, ratchet where asked to, print; for GitHub an error is an annotation too.

    Raises:
        UsageError: what cannot be judged or compared, see `benches.gates.gate`.
    """
    try:
        return _judged(options)
    except EdgesmithError as error:
        if options.github:
            from ...benches.gates.gate_ci import annotation

            print(annotation(type(error).__name__, str(error)), file=_annotated(options))
        raise


def _annotated(options: argparse.Namespace) -> TextIO:
    return sys.stderr if options.json else sys.stdout


def _judged(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ...benches.gates import gate as gates
    from ...benches.gates.finished import of_run, read
    from ...benches.gates.gate_text import print_gate

    finished, margins, beside = of_run(options.run), dict(options.margin), False
    gates.check_margins(margins)
    if options.ratchet and options.baseline is None:
        raise UsageError("--ratchet: needs --baseline, the file that holds the bar")
    if options.baseline is not None and options.baseline.is_dir():
        if options.ratchet:
            raise UsageError(
                f"--ratchet: --baseline {options.baseline} is a directory; give the report.json of the bar"
            )
        beside = True
    first = options.ratchet and not options.baseline.exists()
    baseline = None
    if options.baseline is not None and not first:
        baseline = of_run(options.baseline) if beside else read(options.baseline)
    measured = _beside(options, baseline, margins) if baseline is not None and beside else {}
    gate = gates.check(finished, baseline, _metric(finished), margins, measured)
    if options.ratchet:
        gate = gates.ratchet(gate, finished, options.baseline)
    _for_ci(gate, options)
    if options.json:
        print(json.dumps(dataclasses.asdict(gate), allow_nan=False))
    elif options.github:  # what the table says is no command to the runner, whatever a task or a file is called
        word = secrets.token_hex(16)
        print(f"::stop-commands::{word}")
        print_gate(gate, Console())
        print(f"::{word}::")
    else:
        print_gate(gate, Console())
    return gate.exit_code


def _beside(options: argparse.Namespace, baseline: "Finished", margins: dict[str, float]) -> "dict[str, Change]":
    """Both releases' files timed and weighed now."""
    from rich.console import Console

    from ..progress import Progress
    from ..release_times import measured

    progress = Progress(None if options.json else Console(stderr=True))
    return measured(options.run, baseline, margins, progress)


def _for_ci(gate: "Gate", options: argparse.Namespace) -> None:
    """Everything that was asked for, before the verdict is printed; the same whatever the verdict is."""
    from ...benches.gates import gate_ci
    from ...core.files import storage_errors, write_atomic

    if options.junit is not None:
        write_atomic(options.junit, gate_ci.junit(gate))
    if options.markdown is not None:
        write_atomic(options.markdown, gate_ci.markdown(gate))
    if options.github:
        print(*gate_ci.annotations(gate), sep="\n", file=_annotated(options))
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with storage_errors(Path(summary)), open(summary, "a", encoding="utf-8") as stream:
                stream.write(gate_ci.markdown(gate))


def _metric(finished: "Finished") -> "Metric":
    """The main metric: one of the table, or the task's own, for which the task is loaded."""
    from ...benches.metrics.metrics import METRICS, resolve_metric
    from .. import recipe as recipes, task_file
    from ..evaluation import task_metrics

    name, source = finished.report.main_metric, finished.report.metric_source
    if source is not None and source.table is not None:
        known = resolve_metric(source.table, f"{finished.path}: metric_source.table")
        return dataclasses.replace(known, name=name, output=source.output)
    if source is None and name in METRICS:
        return METRICS[name]
    recipe = recipes.load(finished.path.with_name("recipe.toml"))
    return task_metrics(task_file.load_task(recipe.task, recipe.folder))[0]


def _margin(text: str) -> tuple[str, float]:
    import math

    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    usage = f"'{text}': write it as NAME=VALUE with a number of at least 0, such as drop=0.01"
    if not equals or not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(usage)
    return name, number
