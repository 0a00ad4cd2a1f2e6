"""`edgesmith sensitivity`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ...core.errors import ExitCode
from .argument_types import positive


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "sensitivity",
        help="what each group of channels and each block is worth",
        description="Take one group of coupled channels or one block at a time out of a task's model: what the metric "
        "loses (nothing is trained) and what the deployed network saves in time.",
    )
    parser.add_argument("task", metavar="TASK", help="task.py or task.py:function")
    parser.add_argument("--target", default="onnxruntime-cpu", metavar="T", help="default: onnxruntime-cpu")
    parser.add_argument("--int8", action="store_true", help="time it in INT8, as a recipe that quantizes deploys it")
    parser.add_argument("--samples", type=positive, default=1000, metavar="N", help="of validation (default: 1000)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="of a timed run (default: 1)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="of the runtime (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the metric is computed")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="what is measured stays here (default: runs/sensitivity-TASK)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a chart for each of them")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        EdgesmithError: see `sensitivity.measure_sensitivity`.
    """
    from rich.console import Console

    from ...benches.report.sensitivity_report import print_sensitivity, render_html
    from ...core.files import as_file_name, storage_errors, write_atomic
    from ...core.tables import resolve
    from ...exporters.targets.targets import TARGETS
    from .. import task_file
    from ..measure_options import Measure
    from ..progress import Progress
    from ..pruning.sensitivity import kept_original, measure_sensitivity
    from ..run_directory import RunDirectory
    from ..stage import Context, Deployment, Machine

    resolve(options.target, TARGETS, "--target")
    task = task_file.load_task(options.task, Path())
    out = options.out or Path("runs") / f"sensitivity-{as_file_name(task.name)}"
    directory = RunDirectory(out)
    with storage_errors(out), directory.open():
        candidate = kept_original(task, directory)
        context = Context(
            task=task,
            machine=Machine(device=options.device, threads=options.threads),
            targets=(options.target,),
            work=out,
            progress=Progress(None if options.json else Console(stderr=True)),
            named={"original": candidate}.__getitem__,
            where="sensitivity",
            deployment=Deployment(int8=options.int8, measure=Measure(batch_sizes=(options.batch,))),
        )
        found = measure_sensitivity(candidate, context, options.samples, directory)
    if options.html is not None:
        write_atomic(options.html, render_html(found))
    if options.json:
        print(json.dumps(dataclasses.asdict(found), allow_nan=False))
    else:
        print_sensitivity(found, Console())
    return ExitCode.PASS
