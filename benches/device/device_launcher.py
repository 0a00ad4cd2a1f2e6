"""Measures this bundle on the device it was unpacked on: ``python3 run.py``. Needs numpy and the runtime only.

Becomes `run.py` of a bundle. Nothing of the bundle is imported before every file in it is what manifest.json says.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

SCHEMA = "edgesmith.bundle/1"
MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")  # no "..", nothing absolute
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN = ("work", "result.json")  # what running makes
_CHUNK = 1 << 20


class Refused(Exception):
    """The bundle is not what it was, or this machine cannot run it."""


def verified(folder: Path, digest: Optional[str] = None) -> Dict[str, Any]:
    """The manifest, once every file is what it says.

    Args:
        folder: where the bundle was unpacked.
        digest: SHA-256 that manifest.json itself must have; None: not looked at.

    Raises:
        Refused: a file that is missing, changed, a link or not listed; a name that leads out of the folder.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Refused(f"{path}: no such file; unpack the whole archive")
    if digest is not None and _digest(path) != digest:
        raise Refused(f"{path}: not the one that was sent; unpack the archive again")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in manifest["files"].items()}
        schema = manifest["schema"]
        needs = {name: pip for name, pip in manifest["needs"].items() if _MODULE.fullmatch(name) and pip + ""}
        if len(needs) != len(manifest["needs"]):
            raise ValueError("needs: a name that is no module's")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Refused(f"{path}: not the manifest of a bundle ({error!r})") from error
    if schema != SCHEMA:
        raise Refused(f"{path}: schema is {schema!r}, this run.py reads '{SCHEMA}'")
    for name, (wanted, size) in files.items():
        _check(folder, name, wanted, size)
    for name in _present(folder):
        if name not in files and name != MANIFEST:
            raise Refused(f"{name}: not a file of this bundle; remove it, or unpack the archive into an empty folder")
    result: Dict[str, Any] = manifest
    return result


def _check(folder: Path, name: str, wanted: str, size: int) -> None:
    if not _NAME.fullmatch(name):
        raise Refused(f"{MANIFEST}: {name!r} is no name of a file in a bundle")
    place = folder
    for part in name.split("/"):
        place = place / part
        if place.is_symlink():
            raise Refused(f"{name}: a link; a bundle holds none, unpack the archive again")
    if not place.is_file():
        raise Refused(f"{name}: missing; unpack the whole archive")
    if place.stat().st_size != size:
        raise Refused(f"{name}: {place.stat().st_size} bytes, not {size}; unpack the archive again")
    if _digest(place) != wanted:
        raise Refused(f"{name}: not the file that was bundled (SHA-256 differs); unpack the archive again")


def _present(folder: Path) -> Iterator[str]:
    """Everything in the folder but folders and what running makes, as the manifest would name it."""
    for root, folders, names in os.walk(str(folder)):
        top = Path(root) == folder
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        folders[:] = [name for name in folders if not (top and name in _OWN)]
        for name in sorted(names + links):
            if not (top and (name in _OWN or name.startswith(".partial-"))):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            state.update(chunk)
    return state.hexdigest()


def missing(modules: Dict[str, str]) -> str:
    """What has to be installed before anything can be measured, with the command; empty: nothing.

    Args:
        modules: module -> what pip calls it.
    """
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    packages = " ".join(modules[name] for name in absent)
    return "{}: not installed here; {} -m pip install {}".format(", ".join(absent), sys.executable, packages)


def _options(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Measure this bundle here: accuracy, parity with the reference outputs, paired latency. Writes "
        "result.json beside this file; what is finished is not measured again.",
        epilog="exit codes: 0 measured, 1 failed, 2 the bundle or this machine cannot be used, 4 not measured",
    )
    parser.add_argument("--threads", type=int, help="of every session (default: those of the run)")
    parser.add_argument("--batch", help="batch sizes, such as 1,8 (default: those of the run)")
    parser.add_argument("--seconds", type=float, help="timed for each batch size (default: as long as the run)")
    parser.add_argument("--manifest", metavar="SHA256", help="refuse another manifest.json than this one")
    return parser.parse_args(arguments)


def main(arguments: Optional[List[str]] = None) -> int:
    """Verify, measure, and say where the result is."""
    options, folder = _options(arguments), Path(__file__).resolve().parent
    try:
        if sys.version_info < (3, 8):  # noqa: UP036  # what is found here is not ours to choose
            version = ".".join(map(str, sys.version_info[:2]))
            raise Refused(f"this is Python {version}; 3.8 or newer is needed")
        manifest = verified(folder, options.manifest)
        absent = missing(manifest["needs"])
        if absent:
            raise Refused(absent)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 2
    library = str(folder / "lib")
    os.chdir(library)  # before Python 3.11 a child looks here first; it holds nothing but the package
    sys.path.insert(0, library)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    on_device = importlib.import_module("edgesmith_device.benches.device.on_device")
    code: int = on_device.main(folder, manifest, _digest(folder / MANIFEST), options)
    return code


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the folder stays what the manifest says
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.exit(main())
