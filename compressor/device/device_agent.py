"""What `edgesmith bench --on` asks of a device: this text goes through ssh to its Python, one request each time.

The standard library only. Standard input holds the request as one line of JSON and then, for "put", a tar stream; the
answer is one line on standard output, so that what a login shell prints does no harm.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, Dict, List

ANSWER = "EDGESMITH "
FOLDER = "edgesmith-bundle-"  # and a digest: only folders of this name are written or removed
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")  # no "..", nothing absolute
_CHUNK = 1 << 20
_LARGEST_RESULT = 1 << 24


class Refused(Exception):
    """Something here that must not be written to, or removed."""


def probe(request: Dict[str, Any], data: BinaryIO) -> Dict[str, Any]:
    """Version of Python, and which of the `modules` are missing."""
    absent = [name for name in request["modules"] if importlib.util.find_spec(name) is None]
    return {"python": list(sys.version_info[:3]), "executable": sys.executable, "missing": absent}


def have(request: Dict[str, Any], data: BinaryIO) -> Dict[str, Any]:
    """Which of the `files` (name -> SHA-256) are not in `folder` yet, whole and the same."""
    folder = _folder(request)
    missing = []
    for name, wanted in sorted(request["files"].items()):
        path = _inside(folder, name)
        if not path.is_file() or _digest(path) != wanted:
            missing.append(name)
    return {"missing": missing}


def put(request: Dict[str, Any], data: BinaryIO) -> Dict[str, Any]:
    """Write the files of the tar stream into `folder`, each when it is whole; `files` says what may come.

    Raises:
        Refused: a member that is no plain file, is not listed, or is not what its digest says.
    """
    folder = _folder(request)
    stored: List[str] = []
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tarfile.open(fileobj=data, mode="r|") as archive:
        for member in archive:
            if not member.isreg() or member.name not in request["files"]:
                raise Refused(f"{member.name!r}: not a file of this bundle")
            path = _inside(folder, member.name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = path.with_name(".partial-" + path.name)
            try:
                state, stream = hashlib.sha256(), archive.extractfile(member)
                assert stream is not None  # it is a plain file
                with partial.open("wb") as goal:
                    for chunk in iter(lambda: stream.read(_CHUNK), b""):  # noqa: B023  # read to its end right here
                        state.update(chunk)
                        goal.write(chunk)
                if state.hexdigest() != request["files"][member.name]:
                    raise Refused(f"{member.name}: arrived damaged (SHA-256 differs)")
                os.replace(str(partial), str(path))
                stored.append(member.name)
            finally:
                if partial.exists():
                    partial.unlink()
    return {"stored": stored}


def get(request: Dict[str, Any], data: BinaryIO) -> Dict[str, Any]:
    """The text of result.json in `folder`."""
    path = _inside(_folder(request), "result.json")
    if not path.is_file() or path.stat().st_size > _LARGEST_RESULT:
        raise Refused(f"{path}: no result, or one of more than {_LARGEST_RESULT} bytes")
    return {"text": path.read_text(encoding="utf-8")}


def remove(request: Dict[str, Any], data: BinaryIO) -> Dict[str, Any]:
    """Remove `folder`; one that is not there is no error."""
    folder = _folder(request)
    shutil.rmtree(str(folder), ignore_errors=True)
    return {"gone": not folder.exists()}


OPERATIONS = {"probe": probe, "have": have, "put": put, "get": get, "remove": remove}


def _folder(request: Dict[str, Any]) -> Path:
    folder = Path(request["folder"])
    if not re.fullmatch(re.escape(FOLDER) + "[0-9a-f]+", folder.name):
        raise Refused(f"{folder}: not the name of a bundle's folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise Refused(f"{folder}: not a folder of its own; remove it by hand")
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise Refused(f"{folder}: belongs to another user; give a folder of your own: ssh://user@host/path")
    return folder


def _inside(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r}: no name of a file in a bundle")
    place = folder
    for part in name.split("/"):
        place = place / part
        if place.is_symlink():
            raise Refused(f"{place}: a link; remove it by hand")
    return place


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            state.update(chunk)
    return state.hexdigest()


def main(data: BinaryIO) -> int:
    """Answer one request."""
    request: Dict[str, Any] = json.loads(data.readline().decode("utf-8"))
    try:
        answer = OPERATIONS[request["operation"]](request, data)
    except Refused as refused:
        answer = {"refused": str(refused)}
    except (OSError, tarfile.TarError) as error:
        answer = {"failed": str(error)}
    lines: List[str] = ["", ANSWER + json.dumps(answer)]
    print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer))
