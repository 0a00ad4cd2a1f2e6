"""`edgesmith quantize`: its options and what it does with them; cli.py lists it among the commands."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ...core.errors import ExitCode
from .argument_types import loss, names, positive, seconds

_KEYS = ("target", "calibrator", "recover", "max_drop", "threads", "batch", "seconds", "device")


def add(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "quantize",
        help="an INT8 file from any float ONNX file",
        description="Quantize an ONNX file for one target. What is written is close to the original and faster on this "
        "machine, measured; else nothing is written, and the reason is said (exit code 3).",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DATA",
        help="real inputs: .npz with one array per input and samples on axis 0 (labels too, if there are), a folder "
        "of such files with one run each, or a task.py",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.onnx", help="where the INT8 file goes")
    parser.add_argument("--target", default="onnxruntime-cpu", metavar="T", help="default: onnxruntime-cpu")
    parser.add_argument(
        "--max-drop",
        type=loss,
        metavar="D",
        help="most that may be lost of the metric, 0.01 is 1 point (default with labels); without labels: share of "
        "answers that may change (default: every output at 20 dB or more)",
    )
    parser.add_argument("--calibrator", default="mse", metavar="C", help="how ranges are found (default: mse)")
    parser.add_argument(
        "--recover",
        type=names,
        default=(),
        metavar="R,R",
        help="equalize, smooth, round, bias-correction (default: the quick ones, where INT8 loses too much)",
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="rows of a timed run (default: as the data is)")
    parser.add_argument("--seconds", type=seconds, default=5.0, metavar="S", help="timed for the verdict (default: 5)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="of the runtime (default: 1)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where calibration runs (default: cpu)"
    )
    parser.add_argument("--no-cache", action="store_true", help="find ranges anew, and keep none for the next time")
    parser.add_argument("--all", action="store_true", help="show every layer, and every range")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Quantize and print what came of it.

    Raises:
        EdgesmithError: see `quantize_file.quantize_file`.
    """
    from rich.console import Console

    from ...benches.report.int8_text import print_quantized
    from ..int8.calibration_cache import user_folder
    from ..int8.quantize_file import Options, quantize_file
    from ..progress import Progress

    cache = None if options.no_cache else user_folder()
    asked = Options(cache=cache, **{key: getattr(options, key) for key in _KEYS})
    progress = Progress(None if options.json else Console(stderr=True))
    found = quantize_file(options.model, options.data, options.out, asked, progress)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), allow_nan=False))
    else:
        print_quantized(found, Console(), options.all)
    codes = {"written": ExitCode.PASS, "refused": ExitCode.LIMIT_MISSED, "unproven": ExitCode.UNPROVEN}
    return codes[found.status]
