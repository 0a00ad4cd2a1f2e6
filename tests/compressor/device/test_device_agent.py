"""What the device's side of `bench --on` writes, and what it refuses; in this process, through its one entry."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgesmith.compressor.device import device_agent

FOLDER = "edgesmith-bundle-0123456789abcdef"
GOOD = b"good"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "place" / FOLDER


def ask(
    capsys: pytest.CaptureFixture[str], folder: Path | str, operation: str, data: bytes = b"", **more: Any
) -> dict[str, Any]:
    request = {"operation": operation, "folder": str(folder), **more}
    assert device_agent.main(io.BytesIO(json.dumps(request).encode() + b"\n" + data)) == 0
    (answer,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(device_agent.ANSWER))
    found: dict[str, Any] = json.loads(answer.removeprefix(device_agent.ANSWER))
    return found


def test_put_have_get_remove(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"result.json": sha(b"{}"), "lib/a.py": sha(GOOD)}
    assert ask(capsys, folder, "have", files=files) == {"missing": ["lib/a.py", "result.json"]}
    data = tar((member("lib/a.py"), GOOD), (member("result.json"), b"{}"))
    assert ask(capsys, folder, "put", data, files=files) == {"stored": ["lib/a.py", "result.json"]}
    assert (folder / "lib" / "a.py").read_bytes() == GOOD
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ask(capsys, folder, "have", files=files) == {"missing": []}
    (folder / "lib" / "a.py").write_bytes(b"bad!")
    assert ask(capsys, folder, "have", files=files) == {"missing": ["lib/a.py"]}
    assert ask(capsys, folder, "get") == {"text": "{}"}
    assert ask(capsys, folder, "remove") == {"gone": True}
    assert ask(capsys, folder, "remove") == {"gone": True}
    assert not folder.exists()
    assert ask(capsys, folder, "get") == {
        "refused": f"{folder}/result.json: no result, or one of more than 16777216 bytes"
    }


def test_a_stream_that_breaks_off_leaves_whole_files_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = os.urandom(100_000)
    files = {"a": sha(GOOD), "b": sha(big)}
    whole = tar((member("a"), GOOD), (member("b"), big))
    answer = ask(capsys, folder, "put", whole[:50_000], files=files)
    assert list(answer) == ["failed"]
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert ask(capsys, folder, "have", files=files) == {"missing": ["b"]}


HOSTILE = {
    "a way out": (member("../out"), "'../out': not a file of this bundle"),
    "an absolute name": (member("/tmp/out"), "'/tmp/out': not a file of this bundle"),
    "a name that is not listed": (member("c"), "'c': not a file of this bundle"),
    "a link under a listed name": (member("a", tarfile.SYMTYPE, "/etc/passwd"), "'a': not a file of this bundle"),
    "a hard link": (member("a", tarfile.LNKTYPE, "/etc/passwd"), "'a': not a file of this bundle"),
    "a device": (member("a", tarfile.CHRTYPE), "'a': not a file of this bundle"),
}


@pytest.mark.parametrize(("info", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_members(info: tarfile.TarInfo, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, folder, "put", tar((info, b"")), files={"a": sha(GOOD)}) == {"refused": said}
    assert [path.name for path in folder.parent.rglob("*")] == [FOLDER]


def test_hostile_names_in_a_request_and_damaged_content(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {"../out": sha(GOOD)}
    refused = {"refused": "'../out': no name of a file in a bundle"}
    assert ask(capsys, folder, "put", tar((member("../out"), GOOD)), files=listed) == refused
    assert ask(capsys, folder, "have", files=listed) == refused
    assert ask(capsys, folder, "put", tar((member("a"), b"bad!")), files={"a": sha(GOOD)}) == {
        "refused": "a: arrived damaged (SHA-256 differs)"
    }
    assert list(folder.iterdir()) == []


def test_links_on_the_device_are_not_followed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder.mkdir(parents=True)
    (folder / "lib").symlink_to(outside)
    files = {"lib/a.py": sha(GOOD)}
    said = {"refused": f"{folder}/lib: a link; remove it by hand"}
    assert ask(capsys, folder, "put", tar((member("lib/a.py"), GOOD)), files=files) == said
    assert list(outside.iterdir()) == []
    (folder / "lib").unlink()
    folder.rmdir()
    folder.symlink_to(outside)
    for operation in ("remove", "have", "get"):
        assert ask(capsys, folder, operation, files={}) == {
            "refused": f"{folder}: not a folder of its own; remove it by hand"
        }
    assert outside.is_dir()


@pytest.mark.parametrize("name", ["/", "/home", "edgesmith-bundle-", "edgesmith-bundle-../x", "x/edgesmith-bundle-zz"])
def test_only_folders_of_its_own_name_are_touched(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"refused": f"{Path(name)}: not the name of a bundle's folder"}
    assert ask(capsys, name, "remove") == said
    assert ask(capsys, name, "put", tar(), files={}) == said
