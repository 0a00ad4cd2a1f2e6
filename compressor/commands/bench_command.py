"""`edgesmith bench`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ...core.errors import ExitCode, UsageError
from .argument_types import positive, seconds, shape, sizes


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "bench",
        help="latency, memory and size side by side",
        description="Compare a finished run (its original in torch, compiled and as ONNX, and its files), or ONNX "
        "files, with the first: timed in fresh processes and interleaved blocks, with an interval.",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN_DIR | FILE.onnx",
        help="the directory of a finished run; or ONNX files, the baseline and one or more others",
    )
    parser.add_argument(
        "--batch", type=sizes, metavar="N,N", help="batch sizes (default: those of the run's recipe; files: 1,32)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads of every session (default: 1; with --on as in the run)"
    )
    parser.add_argument(
        "--seconds", type=seconds, metavar="S", help="time per batch size (default: 10; with --on as in the run)"
    )
    parser.add_argument(
        "--concurrency",
        type=sizes,
        default=(),
        metavar="N,N",
        help="samples per second too, with so many threads calling one session at once",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of inputs and orders (default: 0)")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=shape,
        metavar="NAME=1,48",
        help="shape of an input with dynamic axes; repeatable",
    )
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="ssh://USER@HOST",
        help="measure a run on this device instead: its bundle is copied there, run and removed; repeatable",
    )
    parser.add_argument("--samples", type=positive, default=256, metavar="N", help="test samples that go to a device")
    parser.add_argument("--keep", action="store_true", help="leave the bundle's folder on the device")
    parser.add_argument(
        "--device-python", default="python3", metavar="FILE", help="the device's interpreter (default: python3)"
    )
    parser.add_argument("--ssh-config", type=Path, metavar="FILE", help="for ssh, in place of your own (its -F)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Measure, here or on devices, and print.

    Raises:
        UsageError: paths that cannot be compared, see `compare_files` and `run_contenders`.
        MeasurementError: see `side_by_side.measure`.
    """
    from rich.console import Console

    from ...benches.report.side_by_side_table import print_side_by_side
    from ...benches.timing import side_by_side
    from ..progress import Progress

    progress = Progress(None if options.json else Console(stderr=True))
    if options.on:
        from ..device import remote_bench

        return remote_bench.run(options, progress)
    contenders, feeds = _contenders(options)
    concurrency = options.concurrency or side_by_side.for_energy(contenders)
    with progress.bar("measuring, in fresh processes", side_by_side.steps(concurrency=concurrency)) as advance:
        result = side_by_side.measure(
            contenders,
            feeds,
            options.threads or 1,
            concurrency=concurrency,
            seconds=10.0 if options.seconds is None else options.seconds,
            seed=options.seed,
            progress=lambda done, total: advance(done, f"{done} of {total}"),
        )
    if options.json:
        print(json.dumps(dataclasses.asdict(result), allow_nan=False))
    else:
        print_side_by_side(result, Console())
    return ExitCode.PASS


def _contenders(options: argparse.Namespace) -> tuple[Any, Any]:
    if any(path.is_dir() for path in options.paths):
        if len(options.paths) > 1 or options.shape:
            raise UsageError("bench takes one run directory alone, without --shape, or two or more ONNX files")
        from .. import run_contenders

        return run_contenders.contenders(options.paths[0], options.batch)
    from ...benches.timing import compare_files

    return compare_files.contenders(options.paths, options.batch or (1, 32), options.seed, dict(options.shape))
