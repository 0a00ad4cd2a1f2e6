"""One cell: a quantizer on a model, in a fresh process of its own, with what it cost."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgesmith
from edgesmith.core import digest

from . import cells
from .cells import Cell
from .models import Model
from .peers import Peer

TIMEOUT = 1200.0  # seconds
MEMORY_LIMIT = 16 << 30  # bytes of address space
_TAIL = 2000


def quantized(root: Path, model: Model, peer: Peer, pythons: Mapping[str, str]) -> Cell:
    """The cell of a quantizer on a model; the file stands in `files/MODEL/`.

    Args:
        root: working folder.
        model: is prepared where it is not yet.
        peer: see `peers.PEERS`.
        pythons: tool -> interpreter, for tools with an environment of their own.

    Returns:
        `status` ("written", "refused", "failed", "n/a", "missing"), `reason`, `seconds` (of the whole process, on one
        core, or on as many as the file is made for), `peak_bytes` (resident), `bytes` and `digest` of what was written,
        `load` (of the machine, before).
    """
    if peer.only == "transformer" and not model.transformer:
        return {"status": "n/a", "reason": "for transformers"}
    folder = model.folder(root)
    key = {
        "tool": peer.tool,
        "settings": dict(peer.settings),
        "model": digest.of_file(folder / "model.onnx"),
        "samples": digest.of_file(folder / "calibration.npz"),
        "batch": model.calibration_batch,
    }
    if peer.tool == "edgesmith":
        key["sources"] = _sources()
    out = path_of(root, model, peer)
    path = cell_path(root, model, peer)
    return cells.once(path, key, lambda: _run(folder, model, peer, out, pythons.get(peer.tool, sys.executable)), out)


def path_of(root: Path, model: Model, peer: Peer) -> Path:
    """Where the quantized file stands."""
    return root / "files" / model.name / f"{peer.name}{peer.suffix}"


def cell_path(root: Path, model: Model, peer: Peer) -> Path:
    """Where the cell stands."""
    return root / "cells" / model.name / f"{peer.name}.quantized.json"


def _sources() -> str:
    """Of all that edgesmith quantizes with: a changed quantizer is measured anew."""
    package = Path(edgesmith.__file__).parent
    folders = ("core", "calibration", "exporters", "benches", "compressor")
    found = sorted(file for folder in folders for file in (package / folder).rglob("*.py"))
    files = [file for file in found if not {"peers", "results"} & set(file.parts)]
    return digest.of_json({str(file.relative_to(package)): digest.of_file(file) for file in files})


def _run(folder: Path, model: Model, peer: Peer, out: Path, python: str) -> Cell:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent) as name:
        made = Path(name) / out.name
        copy = Path(name) / "float.onnx"  # Model Optimizer writes a newer opset over the file that it is given
        shutil.copyfile(folder / "model.onnx", copy)
        job: dict[str, Any] = {
            "tool": peer.tool,
            "settings": dict(peer.settings),
            "model": str(copy),
            "samples": str(folder / "calibration.npz"),
            "batch": model.calibration_batch,
            "transformer": model.transformer,
            "module": model.name if model.torch else None,
            "folder": str(folder),
            "data": model.data(folder),
            "out": str(made),
            "result": str(Path(name) / "result.json"),
            "memory_limit": MEMORY_LIMIT,
        }
        outcome = _child(python, job, Path(name))
        if outcome["status"] == "written":
            parts = _parts(made)
            for part in parts:
                os.replace(part, out.with_name(part.name))
            outcome["bytes"] = sum(out.with_name(part.name).stat().st_size for part in parts)
            outcome["digest"] = digest.of_file(out.with_suffix(parts[-1].suffix))
    print(f"{model.name}: {peer.name}: {outcome['status']} {outcome['reason']}, {outcome['seconds']:.0f} s", flush=True)
    return outcome


def _parts(made: Path) -> list[Path]:
    """The file, and weights beside it: of an .xml its .bin, of an ONNX file its external data."""
    beside = [made.with_suffix(".bin"), made.with_name(f"{made.name}_data"), made.with_name(f"{made.name}.data")]
    return [made, *(part for part in beside if part.exists())]


def _child(python: str, job: dict[str, Any], folder: Path) -> Cell:
    (folder / "job.json").write_text(json.dumps(job))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [python, "-P", str(Path(__file__).with_name("tools.py")), str(folder / "job.json")]
    load, started = os.getloadavg()[0], time.monotonic()
    common = {"load": round(load, 2)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            env={**os.environ, **threads},
            cwd=folder,  # some tools leave files where they are started
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not done after {TIMEOUT:g} s", "seconds": TIMEOUT, **common}
    except FileNotFoundError:
        return {"status": "missing", "reason": f"no interpreter {python}", "seconds": 0.0, **common}
    common["seconds"] = round(time.monotonic() - started, 2)
    if not Path(job["result"]).exists():
        ending = f"the process ended with code {done.returncode}"
        return {"status": "failed", "reason": f"{ending}: {_last_line(done.stderr)}", **common}
    outcome: Cell = json.loads(Path(job["result"]).read_text())
    if outcome["status"] == "refused":
        outcome["reason"] = _reason(done.stdout) or outcome["reason"]
    if outcome["status"] == "written" and not Path(job["out"]).exists():
        outcome |= {"status": "failed", "reason": "it ended well and wrote no file"}
    return outcome | common | {"said": done.stdout[-_TAIL:]}


def _reason(stdout: str) -> str:
    """What edgesmith's JSON gives as the reason."""
    start = stdout.find("{")
    return "" if start < 0 else str(json.loads(stdout[start:]).get("reason", ""))


def _last_line(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "")[:300]
