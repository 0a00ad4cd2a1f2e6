"""The command line: thin, and nothing heavy is imported before a command needs it."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgesmith
from edgesmith.core.errors import EdgesmithError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

_EPILOG = """exit codes:
  0  pass          every limit is met and proven
  1  failed        the run itself failed
  2  usage         the recipe, the task or a file cannot be used; nothing was changed
  3  limit missed  at least one limit is proven to be missed
  4  unproven      at least one limit could not be proven or measured
  130 interrupted  the same command goes on where it stopped
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        An exit code, see `edgesmith --help`.
    """
    options = _parser().parse_args(arguments)
    # Waiting threads of torch must not spin: beside another busy process that makes training ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up as Ctrl-C does
    try:
        code: int = options.command(options)
        return code
    except EdgesmithError as error:
        return _fail(options, error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PASS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgesmith",
        description="A trained model in; the smallest, fastest artefact that still does the job out, with proof.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgesmith {edgesmith.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compress(commands)
    _add_bench(commands)
    return parser


def _add_compress(commands: Any) -> None:
    parser = commands.add_parser(
        "compress",
        help="run a recipe: from a trained model to a verdict",
        description="Run a recipe. The same command goes on where a stopped run was; nothing finished is done again.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="STAGE.KEY=VALUE",
        help="change a key of the recipe; repeatable",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/ and the task's name)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where training runs (default: cpu)")
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads of the measured runtime (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--json", action="store_true", help="print report.json instead of tables")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan with a time estimate, do nothing"
    )
    parser.set_defaults(command=_compress)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="paired latency of ONNX files",
        description="Time ONNX files against the first, in fresh processes and interleaved blocks, with an interval.",
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE.onnx", help="the baseline, then one or more others"
    )
    parser.add_argument("--batch", type=_sizes, default=(1, 32), metavar="N,N", help="batch sizes (default: 1,32)")
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads of every session (default: 1)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="time per batch size (default: 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of inputs and orders (default: 0)")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        metavar="NAME=1,48",
        help="shape of an input with dynamic axes; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command=_bench)


def _compress(options: argparse.Namespace) -> int:
    progress_console = _console(stderr=True)
    from edgesmith.benches.report import to_json
    from edgesmith.benches.terminal import print_report
    from edgesmith.compressor import job as jobs
    from edgesmith.compressor.pipeline import run
    from edgesmith.compressor.progress import Progress
    from edgesmith.compressor.stage import Machine

    machine = Machine(device=options.device, threads=options.threads, seed=options.seed)
    job = jobs.prepare(options.recipe, overrides=options.overrides, out=options.out, machine=machine)
    if options.dry_run:
        _print_plan(job, jobs.plan(job), options.json)
        return ExitCode.PASS
    report = run(job, Progress(None if options.json else progress_console))
    if options.json:
        print(to_json(report))
    else:
        print_report(report, _console())
        _console().print(f"report: {job.out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return {"pass": ExitCode.PASS, "fail": ExitCode.LIMIT_MISSED, "unproven": ExitCode.UNPROVEN}[report.verdict]


def _print_plan(job: Any, planned: Sequence[Any], as_json: bool) -> None:
    import dataclasses
    import json

    if as_json:
        print(json.dumps({"out": str(job.out), "steps": [dataclasses.asdict(step) for step in planned]}))
        return
    width = max(len(step.id) for step in planned)
    print(f"task '{job.task.name}', judged on {job.recipe.targets[0]}, results in {job.out}")
    for number, step in enumerate(planned, 1):
        print(f"  {number}. {step.id:<{width}}  about {_duration(step.seconds)}")
    whole = _duration(sum(step.seconds for step in planned))
    print(f"in all about {whole}, less what an earlier run has finished; nothing was done")


def _bench(options: argparse.Namespace) -> int:
    from edgesmith.benches.compare_files import bench
    from edgesmith.benches.terminal import print_latency
    from edgesmith.compressor.progress import Progress

    with Progress(None if options.json else _console(stderr=True)).bar("timing, in fresh processes", 5) as advance:
        results = bench(
            options.files,
            options.batch,
            threads=options.threads,
            seconds=options.seconds,
            seed=options.seed,
            shapes=dict(options.shape),
            progress=lambda done, total: advance(done, f"{done} of {total}"),
        )
    if options.json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(result) for result in results], allow_nan=False))
    else:
        print_latency(results, options.files, _console())
    return ExitCode.PASS


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _fail(options: argparse.Namespace, error: EdgesmithError) -> int:
    if getattr(options, "json", False):
        import json

        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": int(error.exit_code)}))
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error.exit_code


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"write it as NAME=1,48, got '{text}'")
    return name, _sizes(sizes)
