"""The command line: thin, and nothing heavy is imported before a command needs it."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgesmith
from edgesmith.compressor.commands import (
    audit_command,
    bench_command,
    bundle_command,
    gate_command,
    lint_command,
    quantize_command,
    sensitivity_command,
    verify_command,
)
from edgesmith.compressor.commands.argument_types import positive, shapes, sizes
from edgesmith.core.errors import EdgesmithError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

_EPILOG = """exit codes:
  0  pass          every limit is met and proven
  1  failed        the run itself failed
  2  usage         the recipe, the task or a file cannot be used; nothing was changed
  3  limit missed  at least one limit is proven to be missed
  4  unproven      at least one limit could not be proven or measured, or every measurement was void
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
    for vendor in ("torchao", "torch.utils._pytree"):  # they warn of CUDA libraries that are missing and of each other
        logging.getLogger(vendor).setLevel(logging.ERROR)
    try:
        code: int = options.command(options)
        return code
    except EdgesmithError as error:
        return _fail(options, error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        # Interrupted in generated code (every dataclass has some), CPython remembers that though it was caught, and
        # `python -m` would end by SIGINT; the next string that is run makes it forget.
        exec("")
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
    _add_init(commands)
    _add_compress(commands)
    quantize_command.add(commands)
    gate_command.add(commands)
    audit_command.add(commands)
    bench_command.add(commands)
    bundle_command.add(commands)
    _add_build(commands)
    _add_inspect(commands)
    sensitivity_command.add(commands)
    verify_command.add(commands)
    lint_command.add(commands)
    _add_doctor(commands)
    return parser


def _add_init(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="write a task and a recipe for a model of your own",
        description="Write task.py and recipe.toml for a model of your own; both run as they are, yours to change.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="package.module:Class, path/file.py:Class, a Hugging Face folder or an ONNX file"
    )
    parser.add_argument("--data", type=Path, metavar="DATA.npz", help="one array per input, and labels")
    parser.add_argument("--test", type=Path, metavar="TEST.npz", help="the test split (default: a part of the data)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of a class: .safetensors, or a state dict")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where they go (default: the model's name)")
    parser.add_argument("--name", metavar="N", help="of the task (default: the folder's name)")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.set_defaults(command=_init)


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the work runs (default: cpu)")
    parser.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="threads of the measured runtime (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="RUN_DIR",
        help="what that run chose by its measurements (layers in INT8, widths for a latency) is taken over where task, "
        "recipe, versions and machine are the same, so that the same work gives the same files",
    )
    parser.add_argument("--json", action="store_true", help="print report.json instead of tables")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan with a time estimate, do nothing"
    )
    parser.set_defaults(command=_compress)


def _add_build(commands: Any) -> None:
    parser = commands.add_parser(
        "build",
        help="a TensorRT engine from an ONNX file",
        description="Build a TensorRT engine from an ONNX file; with tensorrt-rtx no GPU is needed, and what it built "
        "proves that the graph is accepted, not how fast it is.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it goes (default: MODEL.engine beside it)")
    parser.add_argument(
        "--tool",
        choices=("auto", "tensorrt", "tensorrt-rtx"),
        default="auto",
        help="what builds (default: the first of the two that is installed)",
    )
    parser.add_argument(
        "--batch", type=sizes, default=(1, 8, 32), metavar="MIN,OPT,MAX", help="of a dynamic batch (default: 1,8,32)"
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=shapes,
        metavar="NAME=1x3x32:8x3x64:32x3x96",
        help="smallest, usual and largest shape of an input with other dynamic axes; repeatable",
    )
    parser.add_argument("--fp16", action="store_true", help="cast the graph to FP16 first")
    parser.add_argument(
        "--compute-capability", default="", metavar="8.6,8.9", help="GPUs to build for (default: the tool's own choice)"
    )
    parser.add_argument("--workspace-mb", type=positive, metavar="N", help="scratch memory a kernel may use, in MiB")
    parser.add_argument("--timing-cache", metavar="FILE", help="read where it is there, written by tools that use one")
    parser.add_argument("--json", action="store_true", help="print what was built as JSON")
    parser.set_defaults(command=_build)


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="look inside a model: layers, coupled channels, what is INT8")
    parser.add_argument(
        "model", metavar="MODEL", help="ONNX file, task.py, recipe.toml, a run's stages/*/model.safetensors, or a class"
    )
    parser.add_argument("--data", type=Path, metavar="DATA.npz", help="inputs for package.module:Class or --against")
    parser.add_argument(
        "--against", type=Path, metavar="ORIGINAL.onnx", help="how far each layer of a file is from its"
    )
    parser.add_argument("--all", action="store_true", help="do not cut long lists")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(command=_inspect)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what this machine can do, and what brings what is missing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command=_doctor)


def _init(options: argparse.Namespace) -> int:
    from edgesmith.compressor.starter.starter import start

    names = ("data", "test", "weights", "out", "name", "force")
    started = start(options.model, **{name: getattr(options, name) for name in names})
    for line in started.found:
        print(line)
    print(f"wrote {started.task} and {started.recipe}; a dry run accepts them. Next:")
    print(f"  edgesmith compress {shlex.quote(str(started.recipe))} --dry-run")
    print(f"  edgesmith compress {shlex.quote(str(started.recipe))}")
    return ExitCode.PASS


def _inspect(options: argparse.Namespace) -> int:
    from edgesmith.benches.report.inspection_text import print_inspection
    from edgesmith.compressor.inspection import inspect

    found = inspect(options.model, options.data, options.against)
    if options.json:
        _print_json(found)
    else:
        print_inspection(found, _console(), options.all)
    return ExitCode.PASS


def _doctor(options: argparse.Namespace) -> int:
    from edgesmith.benches.report import doctor, doctor_text

    found = doctor.diagnose()
    if options.json:
        _print_json(found)
    else:
        print(*doctor_text.lines(found), sep="\n")
    return ExitCode.PASS if found.healthy else ExitCode.FAILED


def _print_json(value: Any) -> None:
    import dataclasses
    import json

    print(json.dumps(dataclasses.asdict(value), allow_nan=False))


def _compress(options: argparse.Namespace) -> int:
    progress_console = _console(stderr=True)
    from edgesmith.benches.report.report import to_json
    from edgesmith.benches.report.terminal import print_report
    from edgesmith.compressor import job as jobs
    from edgesmith.compressor.pipeline import run
    from edgesmith.compressor.progress import Progress
    from edgesmith.compressor.stage import Machine

    machine = Machine(device=options.device, threads=options.threads, seed=options.seed)
    job = jobs.prepare(options.recipe, overrides=options.overrides, out=options.out, machine=machine, like=options.like)
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


def _build(options: argparse.Namespace) -> int:
    from edgesmith.benches.report.engine_text import print_engine
    from edgesmith.compressor.progress import Progress
    from edgesmith.compressor.schema import parse
    from edgesmith.exporters.engines.engine_options import Build
    from edgesmith.exporters.targets.tensorrt import TensorRT

    given = {
        "tool": options.tool,
        "batch": options.batch,
        "shapes": dict(options.shape),
        "precision": "float16" if options.fp16 else "as-is",
        "workspace_mb": options.workspace_mb,
        "compute_capabilities": [text.strip() for text in options.compute_capability.split(",") if text.strip()],
        "timing_cache": options.timing_cache,
    }
    build = parse(Build, given, "build")
    path = options.out or options.model.with_suffix(".engine")
    Progress(None if options.json else _console(stderr=True)).say(f"building {path}")
    info = TensorRT().build(options.model, path, build)
    if options.json:
        import dataclasses
        import json

        print(json.dumps({"engine": str(path), **dataclasses.asdict(info)}, allow_nan=False))
    else:
        print_engine(info, path, _console())
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
