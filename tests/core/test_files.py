"""A file is complete or absent, whatever kills the writer; a directory belongs to one run."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgesmith.core import files
from edgesmith.core.errors import ExitCode, RunDirectoryError, StorageError

KILLS = 12
WRITE_FILE = """
import itertools, sys
from pathlib import Path
from edgesmith.core import files
for version in itertools.count():
    files.write_atomic(Path(sys.argv[1]), bytes([version % 256]) * 3_000_000)
    print(version, flush=True)
"""
WRITE_DIRECTORY = """
import itertools, sys
from pathlib import Path
from edgesmith.core import files
for version in itertools.count():
    with files.atomic_directory(Path(sys.argv[1])) as partial:
        for index in range(60):
            (partial / f"{index}.bin").write_bytes(bytes([version % 256]) * 1000)
    print(version, flush=True)
"""
HOLD_LOCK = """
import sys, time
from pathlib import Path
from edgesmith.core import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def killed_while_writing(script: str, target: Path, delay: float) -> int:
    """Let a child write `target` again and again, kill it `delay` seconds after its first round; rounds it finished."""
    child = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(delay)
    child.kill()
    rounds = 1 + len(child.communicate()[0].splitlines())
    assert first == "0\n"
    assert child.returncode == -signal.SIGKILL
    return rounds


def test_a_file_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    delays = random.Random(1)
    cut_short = 0
    for number in range(KILLS):
        path = tmp_path / str(number) / "model.bin"
        rounds = killed_while_writing(WRITE_FILE, path, delays.uniform(0, 0.05))
        data = path.read_bytes()
        assert len(data) == 3_000_000
        # Of one version, the last that was reported or the one after it; never a mixture.
        assert set(data) <= {(rounds - 1) % 256, rounds % 256}
        assert len(set(data)) == 1
        cut_short += len(list(path.parent.iterdir())) > 1
    assert cut_short > 0, "no kill fell into a write: the test saw nothing"


def test_a_directory_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    delays = random.Random(2)
    cut_short = 0
    for number in range(KILLS):
        path = tmp_path / str(number) / "stage"
        killed_while_writing(WRITE_DIRECTORY, path, delays.uniform(0, 0.05))
        if path.exists():  # absent: killed between the two renames
            contents = {file.read_bytes() for file in path.iterdir()}
            assert len(list(path.iterdir())) == 60
            assert len(contents) == 1
        cut_short += len(list(path.parent.iterdir())) > 1
        files.remove_partial(path.parent)
        assert set(path.parent.iterdir()) <= {path}
    assert cut_short > 0, "no kill fell into a write: the test saw nothing"


def test_a_directory_is_never_deleted_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting takes many steps, and a kill between two of them would leave half a stage under its final name."""
    path = tmp_path / "stage"
    for text in ("old", "new"):
        seen: list[Path] = []
        monkeypatch.setattr(files.shutil, "rmtree", lambda where, ignore_errors=False, seen=seen: seen.append(where))
        with files.atomic_directory(path) as partial:
            (partial / "model").write_text(text)
        assert path not in seen
        assert (path / "model").read_text() == text


def test_a_replaced_directory_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with files.atomic_directory(tmp_path / "runs" / "stage") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / name).write_text(name)
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()] == [
        "runs/stage/inner/new"
    ]


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "report.json", "µs ≤ 3")
    assert (tmp_path / "report.json").read_bytes() == b"\xc2\xb5s \xe2\x89\xa4 3"


@pytest.mark.parametrize("writer", [files.atomic_path, files.atomic_directory])
def test_a_failure_in_the_block_leaves_what_was_there(tmp_path: Path, writer: object) -> None:
    path = tmp_path / "model"
    with writer(path) as partial:  # type: ignore[operator]
        partial.write_text("1") if writer is files.atomic_path else (partial / "file").write_text("1")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ZeroDivisionError), writer(path) as partial:  # type: ignore[operator]
        partial.write_text("half") if writer is files.atomic_path else (partial / "file").write_text("half")
        raise ZeroDivisionError
    assert sorted(tmp_path.rglob("*")) == before
    assert {file.read_text() for file in tmp_path.rglob("*") if file.is_file()} == {"1"}


def test_an_interrupt_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.atomic_path(tmp_path / "model") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_partial_files_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    keep = [tmp_path / "stage" / "model.bin", tmp_path / "partial-notes.txt", tmp_path / ".lock"]
    drop = [tmp_path / "stage" / ".partial-0a1b2c3d-model.bin", tmp_path / ".partial-0a1b2c3d-stage" / "model.bin"]
    for path in (*keep, *drop):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    files.remove_partial(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(keep)
    assert not drop[1].parent.exists()


def test_a_full_disk_says_that_the_run_goes_on_later(tmp_path: Path) -> None:
    """The kernel's own refusal: /dev/full answers every write with ENOSPC."""
    path = tmp_path / "model.bin"
    with pytest.raises(StorageError) as caught, files.atomic_path(path) as partial:
        partial.symlink_to("/dev/full")
        partial.write_bytes(b"x" * 100)
    assert str(caught.value) == (
        f"{path}: the disk is full; free some space and run the same command again: it goes on from here"
    )
    assert caught.value.exit_code == ExitCode.FAILED
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path: Path) -> None:
    """A process's own size limit stops a write halfway, as a disk does that fills up while writing."""
    path = tmp_path / "model.bin"
    files.write_atomic(path, b"old")
    script = (
        "import signal, sys\nfrom pathlib import Path\nfrom edgesmith.core import errors, files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n    files.write_atomic(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except errors.StorageError as error:\n    print(error)\n"
    )
    limit = 8192
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.stdout, done.stderr) == (f"{path}: File too large\n", "")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_counts_as_a_full_disk(number: int) -> None:
    error = files.storage_error(OSError(number, "whatever"), Path("runs/model"))
    assert isinstance(error, StorageError)
    assert str(error).startswith("runs/model: the disk is full; ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST])
def test_a_place_that_cannot_be_written_is_wrong_use(number: int) -> None:
    error = files.storage_error(OSError(number, os.strerror(number)), Path("runs/model"))
    assert isinstance(error, RunDirectoryError)
    assert error.exit_code == ExitCode.USAGE
    expected = f"runs/model: cannot write here ({os.strerror(number)}); choose another directory with --out"
    assert str(error) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), "runs/model: Input/output error"),
        (OSError("the stream broke"), "runs/model: the stream broke"),
    ],
)
def test_other_errors_of_the_disk_keep_their_words(error: OSError, message: str) -> None:
    assert str(files.storage_error(error, Path("runs/model"))) == message


@pytest.mark.parametrize("write", [files.write_atomic, lambda path, _: files.locked(path.parent).__enter__()])
def test_a_file_where_a_directory_should_be(tmp_path: Path, write: object) -> None:
    (tmp_path / "out").write_text("a file")
    path = tmp_path / "out" / "report.json"
    with pytest.raises(
        RunDirectoryError, match=r"cannot write here \(File exists\); choose another directory with --out"
    ):
        write(path, "{}")  # type: ignore[operator]
    assert (tmp_path / "out").read_text() == "a file"


def test_a_directory_belongs_to_one_process_until_it_ends(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(RunDirectoryError) as caught, files.locked(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: another run is writing here; wait for it, or choose another directory with --out"
    )
    child.kill()
    child.communicate()
    with files.locked(tmp_path):
        pass


def test_a_directory_is_made_locked_and_given_back(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "first"
    with files.locked(directory):
        with pytest.raises(RunDirectoryError), files.locked(directory):
            pass
        with files.locked(tmp_path / "runs" / "second"):
            pass
    with files.locked(directory):
        pass
