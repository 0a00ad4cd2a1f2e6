"""`edgesmith bundle`: its options and what it does with them; cli.py lists it among the commands."""

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
        "bundle",
        help="a finished run as one archive that measures itself on a device",
        description="Write one archive of a finished run: its files, test samples with labels and reference outputs, "
        "and run.py, which needs Python 3.8, numpy and the runtime. On the device: unpack it, then `python3 run.py`.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a finished run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a .tar.gz or .zip file (default: RUN_DIR/bundle.tar.gz)"
    )
    parser.add_argument(
        "--samples", type=positive, default=256, metavar="N", help="test samples that go along (default: at most 256)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write and say so.

    Raises:
        UsageError: not a finished run, see `bundle.fill`.
    """
    from ...benches.report.words import size
    from ..device.bundle import ROOT, write

    out = options.out or options.run / "bundle.tar.gz"
    found = write(options.run, out, options.samples)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), allow_nan=False))
        return ExitCode.PASS
    print(f"wrote {found.path} ({size(found.file_bytes)}): {', '.join(found.targets)}")
    print(f"{found.samples:,} of {found.test_samples:,} test samples; manifest SHA-256 {found.digest}")
    unpack = f"unzip {out.name}" if out.suffix == ".zip" else f"tar xzf {out.name}"
    print(f"on the device: {unpack} && python3 {ROOT}/run.py")
    return ExitCode.PASS
