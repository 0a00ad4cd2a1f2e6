"""`edgesmith bench RUN_DIR --on ssh://user@host`: the run's bundle measures itself there, and the figures come back."""

import argparse
import dataclasses
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ...benches.device.device_launcher import MANIFEST
from ...benches.device.device_result import DEVICES, DeviceResult, from_json
from ...benches.device.device_table import print_devices
from ...benches.report import html_report
from ...core import digest
from ...core.errors import (
    ArtifactError,
    EdgesmithError,
    ExitCode,
    LostConnectionError,
    MeasurementError,
    UsageError,
    VoidError,
)
from ...core.files import write_atomic
from ..progress import Progress
from . import bundle, ssh
from .device_agent import FOLDER
from .ssh import Address, Connection

PAUSES = (1.0, 5.0, 15.0)  # seconds before a lost connection is tried again
_OLDEST = [3, 8]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """A bundle in a folder here."""

    folder: Path
    manifest: dict[str, Any]
    digest: str  # of its manifest

    @property
    def files(self) -> dict[str, str]:
        """Name -> SHA-256 of everything, the manifest too."""
        return {MANIFEST: self.digest, **{name: each["sha256"] for name, each in self.manifest["files"].items()}}


def run(options: argparse.Namespace, progress: Progress) -> int:
    """Measure on every device, keep what comes back under `devices/` of the run directory, print one table.

    Raises:
        UsageError: addresses or options that cannot be used; or the only device's own error.
    """
    run_dir, addresses = _checked(options)
    found: dict[str, DeviceResult] = {}
    errors: dict[str, EdgesmithError] = {}
    with tempfile.TemporaryDirectory(prefix="edgesmith-bundle-") as name:
        packed = pack(run_dir, Path(name), options.samples)
        for address in addresses:
            connection = Connection(address=address, config=options.ssh_config, python=options.device_python)
            try:
                found[address.url] = measure(packed, connection, _arguments(options), options.keep, progress)
            except EdgesmithError as error:  # the other devices are measured all the same
                if len(addresses) == 1:
                    raise
                errors[address.url] = error
                continue
            keep(found[address.url], run_dir / DEVICES / f"{address.name}.json", address)
            html_report.rewrite(run_dir)
    _print(found, errors, options.json)
    return _exit_code(found, errors)


def pack(run_dir: Path, folder: Path, samples: int) -> Packed:
    """The bundle of a finished run in an empty folder."""
    manifest = bundle.fill(run_dir, folder, samples)
    return Packed(folder=folder, manifest=manifest, digest=digest.of_file(folder / MANIFEST))


def measure(
    packed: Packed, connection: Connection, arguments: Sequence[str], keep_folder: bool, progress: Progress
) -> DeviceResult:
    """Copy what is not there yet, run it, bring the result back, clean up.

    After a lost connection all of it is tried again: files that are there are not copied again, and what is measured is
    not measured again. What is given up on for that reason stays there, so that the same command goes on.

    Raises:
        LostConnectionError: lost again each time.
        UsageError: the device cannot be used as it is.
        MeasurementError: the measurement failed there.
        VoidError: every measurement there was void.
    """
    url = connection.address.url
    _probe(packed, connection)
    folder = f"{connection.address.folder or '.'}/{FOLDER}{packed.digest[:16]}"
    request = {"folder": folder, "files": packed.files}

    def once() -> DeviceResult:
        missing = missing_of(connection.ask({"operation": "have", **request}), packed.files, url)
        if missing:
            size = sum((packed.folder / name).stat().st_size for name in missing)
            progress.say(f"{url}: copying {len(missing)} of {len(packed.files)} files ({size:,} bytes)")
            connection.ask({"operation": "put", **request}, lambda stream: _send(packed.folder, missing, stream))
        progress.say(f"{url}: measuring")
        command = [f"{folder}/run.py", "--manifest", packed.digest, *arguments]
        code, stderr = connection.run(command, lambda line: progress.say(f"{url}:   {line}"))
        if code not in (ExitCode.PASS, ExitCode.UNPROVEN):
            kind = UsageError if code == ExitCode.USAGE else MeasurementError
            raise kind(f"{url}: {stderr.strip() or f'run.py ended with code {code}'}")
        if code == ExitCode.UNPROVEN and (said := _void(stderr)):  # no result; one that lies there is an earlier one
            raise VoidError(f"{url}: {said}")
        text = connection.ask({"operation": "get", **request})["text"]
        result = from_json(text, f"{url}: result.json")
        if result.bundle != packed.digest:
            raise ArtifactError(f"{url}: result.json is of another bundle")
        return result

    try:
        result = _again(once, url, progress)
    except LostConnectionError:
        raise
    except EdgesmithError:
        if not keep_folder:
            _again(lambda: connection.ask({"operation": "remove", **request}), url, progress)
        raise
    if keep_folder:
        progress.say(f"{url}: kept {folder}")
    else:
        _again(lambda: connection.ask({"operation": "remove", **request}), url, progress)
    return result


def missing_of(answer: Mapping[str, Any], files: Mapping[str, str], url: str) -> list[str]:
    """What a device says it lacks; nothing but the bundle's own files is ever sent, whatever it asks for.

    Raises:
        MeasurementError: it asks for something else.
    """
    names = answer.get("missing")
    if not isinstance(names, list):
        raise MeasurementError(f"{url}: did not say which files it lacks; look at what answers there")
    if other := [name for name in names if not isinstance(name, str) or name not in files]:
        raise MeasurementError(f"{url}: asks for {other[0]!r}, which is no file of the bundle; nothing was sent")
    return names


def _void(stderr: str) -> str:
    """Why run.py found the measurement void, after which it writes no result; empty: it says no such thing."""
    mark = f"{VoidError.__name__}: "
    return next((line[len(mark) :].strip() for line in reversed(stderr.splitlines()) if line.startswith(mark)), "")


def keep(result: DeviceResult, path: Path, address: Address) -> None:
    """Write a device's result into the run directory."""
    tree = dataclasses.asdict(result)
    text = json.dumps({"schema": tree.pop("schema"), "url": address.url, **tree}, indent=1, allow_nan=False)
    write_atomic(path, text + "\n")


def _checked(options: argparse.Namespace) -> tuple[Path, list[Address]]:
    if len(options.paths) != 1 or not options.paths[0].is_dir() or options.shape:
        raise UsageError("bench --on takes one run directory alone, without --shape")
    if options.concurrency:
        raise UsageError("bench --on measures no throughput: leave out --concurrency")
    addresses = [ssh.parse(text) for text in options.on]
    for number, address in enumerate(addresses):
        if address.name in [other.name for other in addresses[:number]]:
            raise UsageError(f"--on {address.url}: given twice")
    if options.ssh_config is not None and not options.ssh_config.is_file():
        raise UsageError(f"--ssh-config {options.ssh_config}: no such file")
    return options.paths[0], addresses


def _arguments(options: argparse.Namespace) -> list[str]:
    """Options of run.py; what was not given is as in the run."""
    batch = None if options.batch is None else ",".join(map(str, options.batch))
    given = {"--threads": options.threads, "--batch": batch, "--seconds": options.seconds}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _probe(packed: Packed, connection: Connection) -> None:
    needs: dict[str, str] = packed.manifest["needs"]
    said = connection.ask({"operation": "probe", "modules": list(needs)})
    url, version = connection.address.url, ".".join(map(str, said["python"]))
    if said["python"][:2] < _OLDEST:
        raise UsageError(f"{url}: Python {version} there; 3.8 or newer is needed: name one with --device-python")
    if said["missing"]:
        packages = " ".join(needs[name] for name in said["missing"])
        raise UsageError(
            f"{url}: {', '.join(said['missing'])} not installed there; run there: "
            f"{said['executable']} -m pip install {packages}"
        )


def _send(folder: Path, names: Sequence[str], stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            archive.add(folder / name, arcname=name, recursive=False)


def _again(action: Callable[[], T], url: str, progress: Progress) -> T:
    """Do it, and after a lost connection do it again, a few times."""
    for pause in PAUSES:
        try:
            return action()
        except LostConnectionError as lost:
            progress.say(f"{lost}; trying again in {pause:g} s")
            time.sleep(pause)
    try:
        return action()
    except LostConnectionError as lost:
        raise LostConnectionError(
            f"{lost}, {len(PAUSES) + 1} times; the same command goes on where it stopped"
        ) from lost


def _print(found: dict[str, DeviceResult], errors: dict[str, EdgesmithError], as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    if as_json:
        devices = {url: dataclasses.asdict(result) for url, result in found.items()}
        failed = {url: {"error": type(error).__name__, "message": str(error)} for url, error in errors.items()}
        print(json.dumps({"devices": devices, "failed": failed}, allow_nan=False))
        return
    console = Console()
    print_devices(found, console)
    for error in errors.values():
        console.print(Text(f"{type(error).__name__}: {error}"), soft_wrap=True)


def _exit_code(found: dict[str, DeviceResult], errors: dict[str, EdgesmithError]) -> ExitCode:
    """That of the first device that failed; unproven where a judged file was not measured."""
    for error in errors.values():
        return error.exit_code
    return ExitCode.PASS if all(result.judged.measured for result in found.values()) else ExitCode.UNPROVEN
