"""Nothing finished is done twice, nothing half done is believed, and nobody else's files are touched."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from edgesmith.compressor.run_directory import RunDirectory
from edgesmith.core.errors import ExitCode, RunDirectoryError, StorageError


def make_file(folder: Path, work: Path) -> dict[str, Any]:
    (folder / "result.txt").write_text("42")
    return {"answer": 42}


def never(folder: Path, work: Path) -> dict[str, Any]:
    raise AssertionError("made twice")


def test_a_finished_piece_is_not_done_again(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.open():
        first = directory.once("stages/01", {"a": 1}, make_file)
    with directory.open():
        again = directory.once("stages/01", {"a": 1}, never)
    assert not first.reused
    assert again.reused
    assert again.facts == {"answer": 42}
    assert (again.path / "result.txt").read_text() == "42"


def test_another_key_is_another_result(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.open():
        directory.once("stages/01", {"a": 1}, make_file)
        assert not directory.once("stages/01", {"a": 2}, make_file).reused


def test_a_file_that_was_changed_is_made_again(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.open():
        done = directory.once("stages/01", {}, make_file)
        (done.path / "result.txt").write_text("43")
        again = directory.once("stages/01", {}, make_file)
    assert not again.reused
    assert (again.path / "result.txt").read_text() == "42"


def _killed_inside(root: str, ready: Any) -> None:
    directory = RunDirectory(Path(root))

    def slow(folder: Path, work: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        (work / "checkpoint").write_text("kept")
        ready.set()
        time.sleep(60)
        return {}

    with directory.open():
        directory.once("stages/01", {"a": 1}, slow)


def test_a_kill_leaves_the_checkpoint_and_no_result(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    child = spawn.Process(target=_killed_inside, args=(str(tmp_path / "run"), ready))
    child.start()
    assert ready.wait(30)
    directory = RunDirectory(tmp_path / "run")
    with (
        pytest.raises(
            RunDirectoryError, match="another run is writing here; wait for it, or choose another directory"
        ) as caught,
        directory.open(),
    ):
        pass
    assert caught.value.exit_code == ExitCode.USAGE
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()

    def resumed(folder: Path, work: Path) -> dict[str, Any]:
        return {"found": (work / "checkpoint").read_text(), "leftovers": sorted(p.name for p in folder.iterdir())}

    with directory.open():
        assert directory.once("stages/01", {"a": 1}, resumed).facts == {"found": "kept", "leftovers": []}
    assert not list((tmp_path / "run").rglob(".partial-*"))


def test_someone_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(RunDirectoryError, match=r"not a run directory and not empty \(it holds thesis\.txt\)"),
        RunDirectory(tmp_path).open(),
    ):
        pass
    with (
        pytest.raises(RunDirectoryError, match="is a file; choose a directory with --out"),
        RunDirectory(tmp_path / "thesis.txt").open(),
    ):
        pass


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write here"), RunDirectory(tmp_path / "file" / "run").open():
        pass


def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")

    def full(folder: Path, work: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with directory.open():
        with pytest.raises(
            StorageError, match="the disk is full; free some space and run the same command again"
        ) as caught:
            directory.once("stages/01", {}, full)
        assert caught.value.exit_code == ExitCode.FAILED
        assert directory.finished("stages/01", {}) is None
        assert not directory.once("stages/01", {}, make_file).reused


def test_tidy_removes_what_no_recipe_needs(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.open():
        directory.once("stages/01", {}, make_file)
        directory.once("stages/02", {}, make_file)
        directory.tidy({"stages/02"})
    assert sorted(path.name for path in (tmp_path / "run" / "stages").iterdir()) == ["02"]
    assert json.loads((tmp_path / "run" / "edgesmith-run.json").read_text()) == {"format": "edgesmith.run/1"}
