"""Broken recipes, ONNX files, reports, locks, predictions, bundles: ``python benches/results/fuzz.py RUN [--cases N]``.

RUN is the directory of a finished run. Every case is a command as a user gives it, or a bundle's own reader, on a file
that was damaged by a seeded mutation. A finding is what must not be: an exception that leaves the command line, a crash
of the process, more than `LIMIT` seconds, an exit code that is none, a file opened for writing outside the case's own
folder. Printed are the counts by kind and exit code, and every finding with its seed; `--kind K --first SEED --cases 1`
plays one again.
"""

import argparse
import atexit
import collections
import contextlib
import functools
import importlib
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: what is forked has no threads

from edgesmith import cli
from edgesmith.benches.device import device_input, device_launcher, device_result
from edgesmith.benches.device.device_launcher import MANIFEST
from edgesmith.compressor import pipeline
from edgesmith.compressor.device import bundle, device_agent
from edgesmith.core import digest
from edgesmith.core.errors import ArtifactError, EdgesmithError

damage: Any = importlib.import_module("fuzz_damage")  # beside this file

assert pipeline  # torch and the rest are imported once, not in every process

LIMIT = 60.0  # seconds of one case
CHUNK = 100  # cases of one process
CODES = {0, 1, 2, 3, 4}
RECIPE = """
task = "task.py"
targets = ["onnxruntime-cpu", "tensorrt"]
[[stages]]
use = "prune"
macs_ratio = 0.5
importance = "magnitude-l2"
[[stages]]
use = "distill"
epochs = 2
learning_rate = 1e-3
[[stages]]
use = "export"
[[stages]]
use = "quantize"
calibrator = "mse"
samples = 64
[build]
tool = "tensorrt-rtx"
[measure]
batch_sizes = [1, 4]
seconds = 0.5
[limits]
drop = 0.03
speedup = 1.5
file_ratio = 0.4
"""
TASK = """
import edgesmith, numpy as np, torch
x = np.random.default_rng(0).random((64, 3, 8, 8), np.float32)
part = lambda a, b: edgesmith.ArraySplit({"x": x[a:b]}, np.arange(a, b) % 4)
def model():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1152, 4))
def task():
    return edgesmith.Task(name="fuzz", model=model, train=part(0, 32), validation=part(32, 48), test=part(48, 64))
"""
Mutation = Callable[[bytes, random.Random], bytes]


def recipe_case(run: Path, folder: Path, change: Mutation, rng: random.Random) -> list[str]:
    (folder / "task.py").write_text(TASK)
    (folder / "recipe.toml").write_bytes(change(RECIPE.encode(), rng))
    return ["compress", str(folder / "recipe.toml"), "--dry-run", "--out", str(folder / "out")]


def onnx_case(run: Path, folder: Path, change: Mutation, rng: random.Random) -> list[str]:
    files = sorted(run.glob("**/model.onnx"))
    path = folder / "model.onnx"
    path.write_bytes(change(rng.choice(files).read_bytes(), rng))
    return rng.choice(
        (
            ["inspect", str(path)],
            ["lint", str(path), "--target", "tensorrt"],
            ["lint", str(path), "--target", "onnxruntime-x86"],
        )
    )


def of_run(command: str, name: str) -> Callable[[Path, Path, Mutation, random.Random], list[str]]:
    """A finished run of which one file was damaged."""

    def case(run: Path, folder: Path, change: Mutation, rng: random.Random) -> list[str]:
        copy = folder / "run"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("stages", "measurements"))
        (copy / name).write_bytes(change((run / name).read_bytes(), rng))
        return [command, str(copy)]

    return case


def bundle_case(run: Path, folder: Path, change: Mutation, rng: random.Random) -> Callable[[], int]:
    """A bundle as an unpacked folder that the runner looks at, or as the stream that the device's side is sent."""
    source = _bundle(run)
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    if change is not damage.unchanged and rng.random() < 0.5:
        return _stream_case(source, names, folder, change, rng)
    unpacked = folder / "edgesmith-bundle"
    shutil.copytree(source, unpacked)
    victim = unpacked / rng.choices((MANIFEST, "reference.npz", rng.choice(names)), (5, 2, 3))[0]
    how = rng.randrange(4) if change is not damage.unchanged else 3
    if how == 0:  # a link in its place
        victim.unlink()
        victim.symlink_to(rng.choice(("/etc/passwd", "..", "/dev/zero", victim.name)))
    elif how == 1:  # two members change places
        other = unpacked / rng.choice(names)
        first, second = victim.read_bytes(), other.read_bytes()
        victim.write_bytes(second)
        other.write_bytes(first)
    else:
        victim.write_bytes(change(victim.read_bytes(), rng))
        if victim.name != MANIFEST and rng.random() < 0.5:
            _listed(unpacked, victim)

    def look() -> int:
        try:
            manifest = device_launcher.verified(unpacked)
            device_launcher.missing(manifest["needs"])
            device_input.check_manifest(manifest)
            device_input.read_reference(unpacked / manifest["reference"])
        except (device_launcher.Refused, ArtifactError):
            return 2
        return 0

    return look


def _listed(unpacked: Path, victim: Path) -> None:
    """The manifest says of the damaged file what it now is: somebody made the bundle so."""
    path = unpacked / MANIFEST
    manifest = json.loads(path.read_text())
    entry = {"sha256": digest.of_file(victim), "bytes": victim.stat().st_size}
    manifest["files"][victim.relative_to(unpacked).as_posix()] = entry
    path.write_text(json.dumps(manifest, indent=1))


def _stream_case(
    source: Path, names: Sequence[str], folder: Path, change: Mutation, rng: random.Random
) -> Callable[[], int]:
    packed, chosen = io.BytesIO(), rng.sample(list(names), 4)
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in chosen:
            info, data = tarfile.TarInfo(name), (source / name).read_bytes()
            info.size = len(data)
            if rng.random() < 0.3:
                info.name = rng.choice(("../x", "/tmp/x", "a/../../x", "", "run.py/x", "x" * 5000, name + "\udcff"))
            if rng.random() < 0.2:
                info.type, info.linkname = (
                    rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)),
                    "/etc/passwd",
                )
            if rng.random() < 0.1:
                info.size = rng.choice((0, 1, 2**40))  # says another size than there is
            archive.fileobj.write(info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape"))
            archive.fileobj.write(data + bytes(-len(data) % 512))
    stream = packed.getvalue()
    files = {name: digest.of_file(source / name) for name in names}
    request = {"operation": "put", "folder": str(folder / "edgesmith-bundle-00"), "files": files}
    text = json.dumps(request).encode() + b"\n" + (change(stream, rng) if rng.random() < 0.7 else stream)
    return lambda: device_agent.main(io.BytesIO(text))


def result_case(run: Path, folder: Path, change: Mutation, rng: random.Random) -> Callable[[], int]:
    """What a device sent back."""
    text = change((_bundle(run).parent / "result.json").read_bytes(), rng).decode(errors="replace")

    def read() -> int:
        try:
            device_result.from_json(text, "result.json")
        except EdgesmithError as error:
            return error.exit_code
        return 0

    return read


@functools.cache
def _bundle(run: Path) -> Path:
    """The run's bundle in a folder, and beside it what it measured here: both made once, before anything is damaged."""
    folder = Path(tempfile.mkdtemp(prefix="edgesmith-fuzz-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "bundle").mkdir()
    bundle.fill(run, folder / "bundle", 16)
    command = [sys.executable, str(folder / "bundle" / "run.py"), "--seconds", "0.2", "--batch", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    os.replace(folder / "bundle" / "result.json", folder / "result.json")
    shutil.rmtree(folder / "bundle" / "work")
    return folder / "bundle"


Made = list[str] | Callable[[], int]  # a command, or what reads a file without one
KINDS: dict[str, tuple[Callable[[Path, Path, Mutation, random.Random], Made], tuple[Mutation, ...], int]] = {
    "recipe": (recipe_case, damage.TEXT, 4),  # how to make a case, what damages it, share of all cases
    "onnx": (onnx_case, (*damage.BINARY, *3 * (damage.other_graph,)), 4),
    "report": (of_run("gate", "report.json"), damage.TEXT, 3),
    "predictions": (of_run("gate", "predictions.npz"), damage.BINARY, 1),
    "lock": (of_run("verify", "edgesmith.lock"), damage.TEXT, 1),
    "bundle": (bundle_case, (*damage.TEXT, *damage.BINARY), 2),
    "result": (result_case, damage.TEXT, 1),
}


def played(kind: str, seed: int, run: Path, changes: Sequence[Mutation] = ()) -> tuple[str, str]:
    """Exit code or "finding", and what was found."""
    make, changes = KINDS[kind][0], changes or KINDS[kind][1]
    rng = random.Random(f"{kind} {seed}")
    # As deep as the run, whose recipe names its task by a relative path: `verify` opens it.
    with tempfile.TemporaryDirectory(prefix="edgesmith-fuzz-", dir=run.parent.parent) as name:
        folder, said = Path(name), io.StringIO()
        change = rng.choice(changes)
        command = make(run, folder, change, rng)
        _written.clear()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = command() if callable(command) else cli.main(command)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else -1
        except BaseException:  # whatever leaves the command line is what is looked for
            return "finding", f"{change.__name__}: {traceback.format_exc(limit=-4)}"
        outside = [path for path in _written if not path.startswith((name, *_ALLOWED))]
        if outside:
            return "finding", f"{change.__name__}: wrote {outside[:3]}"
        if code not in CODES or "Traceback" in said.getvalue():
            return "finding", f"{change.__name__}: exit code {code}: {said.getvalue()[-2000:]}"
        return str(int(code)), ""


_written: list[str] = []
_TEMPORARY = tempfile.gettempdir() + "/edgesmith"
_ALLOWED = (
    os.devnull,
    "/proc/",
    "/dev/",
    tempfile.gettempdir() + "/torchinductor",
)  # torch makes the last when imported


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Every file that Python code opens for writing, makes, moves or removes, but for temporary ones of its own."""
    if (
        event == "open"
        and isinstance(arguments[0], str)
        and isinstance(arguments[1], str)
        and set(arguments[1]) & set("wax+")
    ):
        paths = [arguments[0]]
    elif event in ("os.rename", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree"):
        paths = [each for each in arguments if isinstance(each, str)]
    else:
        return
    absolute = map(os.path.abspath, paths)
    _written.extend(path for path in absolute if not path.startswith(_TEMPORARY))


def chunk(kind: str, seeds: Sequence[int], run: Path) -> Iterator[tuple[int, str, str, float]]:
    """The cases of one forked process; what ends or stops it is a finding, and the next ones get a new process.

    Yields:
        Seed, outcome, what was found, seconds that the case took.
    """
    left = list(seeds)
    while left:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            sys.addaudithook(_watch)
            for seed in left:
                begun = time.monotonic()
                outcome, text = played(kind, seed, run)
                took = time.monotonic() - begun
                os.write(writing, f"{seed}\0{took}\0{outcome}\0{text[:3000]}\1".encode())
            os._exit(0)
        os.close(writing)
        buffer, reason, deadline = b"", "", time.monotonic() + LIMIT
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(reading, 1 << 16) if ready else b""
            if not ready:
                reason = f"more than {LIMIT:.0f} s"
                os.kill(child, signal.SIGKILL)
            if not data:
                break
            buffer, deadline = buffer + data, time.monotonic() + LIMIT
            while b"\1" in buffer:
                entry, _, buffer = buffer.partition(b"\1")
                number, seconds, outcome, text = entry.decode(errors="replace").split("\0", 3)
                left.remove(int(number))
                yield int(number), outcome, text, float(seconds)
        os.close(reading)
        status = os.waitpid(child, 0)[1]
        if left:
            yield left.pop(0), "finding", reason or f"the process ended with status {status}", LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--kind", choices=KINDS, help="one alone")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(KINDS)
    shares = sum(KINDS[kind][2] for kind in kinds)
    findings: list[str] = []
    for kind in kinds:
        counts: collections.Counter[str] = collections.Counter()
        sound = played(kind, 0, options.run.resolve(), [damage.unchanged])
        if sound[0] not in ("0", "3"):  # 3: what a lint says of an INT8 file for another target
            sys.exit(f"{kind}: what is not damaged ends with {sound}; nothing was tried")
        slowest = (0.0, options.first)
        start, number = time.monotonic(), -(-options.cases * KINDS[kind][2] // shares)
        seeds = range(options.first, options.first + number)
        for begin in range(0, number, CHUNK):
            for seed, outcome, text, seconds in chunk(kind, seeds[begin : begin + CHUNK], options.run.resolve()):
                counts[outcome] += 1
                slowest = max(slowest, (seconds, seed))
                if outcome == "finding":
                    findings.append(f"{kind} {seed}: {text}")
                    print(findings[-1], flush=True)
        said = ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))
        took = f"{time.monotonic() - start:.0f} s, the slowest {slowest[0]:.2f} s (seed {slowest[1]})"
        print(f"{kind}: {number:,} cases in {took}; {said}", flush=True)
    print(f"{len(findings)} finding(s)")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
