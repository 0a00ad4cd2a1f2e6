"""`edgesmith verify`: a run that is what its lock says, and each way in which it is not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.gates.finished import read
from edgesmith.cli import main
from edgesmith.compressor import measuring
from edgesmith.compressor.lock import lock_of, lock_text
from edgesmith.core import digest
from edgesmith.core.errors import ExitCode

from .planted import Weights, change_weights

RUN = Path("runs/small")
FINAL = "artifacts/onnxruntime-cpu/model.onnx"
LOCK = RUN / "edgesmith.lock"


def edit_lock(**fields: Any) -> None:
    LOCK.write_text(json.dumps(json.loads(LOCK.read_text()) | fields))


def zeros(weights: Weights) -> None:
    """As a broken export leaves a head: it says the same of every image."""
    for name, array in weights.items():
        if array.ndim == 2:
            weights[name] = np.zeros_like(array)


def verify(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    code = main(["verify", str(RUN), *options])
    said = capsys.readouterr()
    return code, (said.out + said.err).splitlines()


def test_an_untouched_run_is_what_its_lock_says(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((RUN / "report.json").read_text())
    code, (asked, verdict) = verify(capsys)
    assert (code, verdict) == (ExitCode.PASS, "runs/small: what its lock says")
    assert asked == (
        f"asked again: accuracy {report['final']['accuracy']:.6g} on 497 test samples, outputs at most 0 from those kept"
    )
    lock = json.loads(LOCK.read_text())
    assert next(iter(lock)) == "schema"
    assert lock["artifacts"] == {each["path"]: each["digest"] for each in report["artifacts"]}
    assert (lock["original"], lock["test_data"]) == (report["stages"][0]["digest"], report["test_digest"])
    assert len(lock["calibration_data"]) == 64
    assert lock["timing_cache"] == ""
    engine = report["artifacts"][1]["engine"]
    assert lock["engines"] == {engine["path"]: engine["digest"]}


def test_an_engine_cut_short_and_another_timing_cache(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine is what goes to the device; the cache only says how the next one would be built."""
    Path("engines.cache").write_bytes(b"timed")
    recipe = RUN / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[build]", '[build]\ntiming_cache = "../../engines.cache"'))
    lock = json.loads(LOCK.read_text())
    old = {key: value for key, value in lock.items() if key not in ("engines", "timing_cache")}
    LOCK.write_text(json.dumps(old | {"recipe": digest.of_file(recipe)}))
    assert verify(capsys)[0] == ExitCode.PASS, "a lock of a version that kept neither"
    lock = json.loads(lock_text(lock_of(read(RUN / "report.json").report, lock["task_identity"], RUN)))
    assert lock["timing_cache"] == digest.of_bytes(b"timed")
    LOCK.write_text(json.dumps(lock))
    assert verify(capsys)[1][-1] == "runs/small: what its lock says"
    Path("engines.cache").write_bytes(b"timed again")
    code, lines = verify(capsys)
    assert (code, lines[-2:]) == (
        ExitCode.PASS,
        [
            f"elsewhere: timing cache: locked {digest.of_bytes(b'timed')[:12]}, found {digest.of_bytes(b'timed again')[:12]}",
            "runs/small: what its lock says",
        ],
    )
    engine = RUN / next(iter(lock["engines"]))
    engine.write_bytes(engine.read_bytes()[:-1])
    code, lines = verify(capsys)
    assert code == ExitCode.LIMIT_MISSED
    assert [line.split(": locked")[0] for line in lines if line.startswith("differs")] == [
        f"differs: {engine.relative_to(RUN).as_posix()}"
    ]


def test_another_tokenizer_beside_the_file(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read(RUN / "report.json").report
    for each in report.artifacts:
        (RUN / each.path).with_name("tokenizer.json").write_text("{}")
    locked = lock_of(report, json.loads(LOCK.read_text())["task_identity"], RUN, [Path("elsewhere/tokenizer.json")])
    assert locked.files == {
        f"artifacts/{target}/tokenizer.json": digest.of_bytes(b"{}") for target in ("onnxruntime-cpu", "tensorrt")
    }
    LOCK.write_text(lock_text(locked))
    assert verify(capsys)[1][-1] == "runs/small: what its lock says"
    (RUN / FINAL).with_name("tokenizer.json").write_text("{ }")
    code, lines = verify(capsys)
    assert (code, lines[1]) == (
        ExitCode.LIMIT_MISSED,
        f"differs: artifacts/onnxruntime-cpu/tokenizer.json: locked {digest.of_bytes(b'{}')[:12]}, "
        f"found {digest.of_bytes(b'{ }')[:12]}",
    )


def test_files_that_changed_are_named_and_nothing_is_asked(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = json.loads(LOCK.read_text())
    (RUN / FINAL).write_bytes(b"x")
    (RUN / "predictions.npz").unlink()
    code, lines = verify(capsys)
    assert code == ExitCode.LIMIT_MISSED
    assert lines == [
        "asked again: not asked: a file differs",
        f"differs: predictions.npz: locked {locked['predictions'][:12]}, found missing",
        f"differs: {FINAL}: locked {locked['artifacts'][FINAL][:12]}, found {digest.of_bytes(b'x')[:12]}",
        "runs/small: 2 thing(s) differ from its lock",
    ]


def test_a_task_that_changed_since(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Path("task.py")
    task.write_text(task.read_text().replace("part(1300, 1797)", "part(1301, 1797)"))
    code, lines = verify(capsys)
    assert code == ExitCode.LIMIT_MISSED
    assert lines[0] == "asked again: not asked: the data differ"
    assert [line.split(": locked")[0] for line in lines[1:-1]] == [
        "differs: the task's data or code", "differs: the test data",
    ]  # fmt: skip


def test_other_calibration_data_than_the_ranges_come_from(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Path("task.py")
    task.write_text(task.read_text().replace("        outputs=", "        calibration=part(0, 900),\n        outputs="))
    code, lines = verify(capsys)
    assert code == ExitCode.LIMIT_MISSED
    assert [line.split(": locked")[0] for line in lines[1:-1]] == [
        "differs: the task's data or code", "differs: the calibration data",
    ]  # fmt: skip


def test_a_file_under_its_own_digest_that_answers_otherwise(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both the file and its line in the lock were replaced: what it answers gives it away."""
    change_weights(RUN / FINAL, zeros)
    edit_lock(artifacts=json.loads(LOCK.read_text())["artifacts"] | {FINAL: digest.of_file(RUN / FINAL)})
    code, lines = verify(capsys)
    kept = json.loads((RUN / "report.json").read_text())["final"]["accuracy"]
    assert code == ExitCode.LIMIT_MISSED
    assert lines[1].startswith(f"differs: accuracy of {FINAL}: locked {kept:.6g}, found 0.")


def test_another_version_is_said_and_breaks_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = json.loads(LOCK.read_text())["environment"]
    now = environment["onnxruntime"]
    edit_lock(environment=environment | {"onnxruntime": "1.0.0"})
    code, lines = verify(capsys)
    assert (code, lines[1]) == (ExitCode.PASS, f"elsewhere: onnxruntime: locked 1.0.0, found {now}")
    code, (text,) = verify(capsys, "--json")
    tree = json.loads(text)
    assert (tree["same"], tree["differences"]) == (True, [])
    assert tree["environment"] == [{"what": "onnxruntime", "locked": "1.0.0", "found": now}]


def test_no_lock_and_one_that_is_none(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_lock(recipe=3)
    assert verify(capsys) == (
        ExitCode.USAGE,
        [
            "ArtifactError: runs/small/edgesmith.lock: not a lock of schema 'edgesmith.lock/1': recipe: Input should be a "
            "valid string"
        ],
    )
    edit_lock(recipe="0" * 64, environment={"seed": 0})
    assert verify(capsys)[1] == [
        "ArtifactError: runs/small/edgesmith.lock: not a lock of schema 'edgesmith.lock/1': environment.threads: not a "
        "whole number"
    ]
    edit_lock(environment={"seed": 0, "threads": 1}, artifacts={})
    assert verify(capsys)[1] == [
        "ArtifactError: runs/small/edgesmith.lock: not a lock of schema 'edgesmith.lock/1': artifacts: not one file of "
        "'onnxruntime-cpu'"
    ]
    LOCK.unlink()
    assert verify(capsys) == (
        ExitCode.USAGE,
        ["RunDirectoryError: runs/small/edgesmith.lock: no lock that can be read; `edgesmith compress` writes one"],
    )


def write_report(tree: Any) -> None:
    """As if the run had ended with this report."""
    path = RUN / "report.json"
    path.write_text(json.dumps(tree))
    edit_lock(report=digest.of_file(path))


def test_a_report_that_was_edited(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RUN / "report.json"
    path.write_text(path.read_text().replace('"verdict": "pass"', '"verdict": "fail"'))
    code, lines = verify(capsys)
    assert code == ExitCode.LIMIT_MISSED
    locked = json.loads(LOCK.read_text())["report"]
    assert lines[1:] == [
        f"differs: report.json: locked {locked[:12]}, found {digest.of_file(path)[:12]}",
        "runs/small: 1 thing(s) differ from its lock",
    ]
    old = {key: value for key, value in json.loads(LOCK.read_text()).items() if key != "report"}
    LOCK.write_text(json.dumps(old))
    assert verify(capsys)[0] == ExitCode.PASS, "a lock of a version that did not keep it"


def shift_report(change: float) -> None:
    """The report's speed-ups become another machine's or another day's."""
    path = RUN / "report.json"
    tree = json.loads(path.read_text())
    for each in tree["latency"]:
        for key in ("median", "low", "high"):
            each["speedup"][key] *= change
    write_report(tree)


def test_measured_again(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an untouched run nothing differs; of a report that promises ten times the speed the time does, twice looked at."""
    looks: list[int] = []
    timed = measuring._timed

    def counted(pair: Any, task: Any, recipe: Any, look: int, threads: int, progress: Any) -> Any:
        looks.append(look)
        return timed(pair, task, recipe, look, threads, progress)

    monkeypatch.setattr(measuring, "_timed", counted)
    monkeypatch.setattr(measuring, "_looks", lambda recipe: ((2, 0.75), (2, 0.75)))  # fewer processes than a release
    shift_report(10.0)
    code, (text,) = verify(capsys, "--measure", "--json")
    tree = json.loads(text)
    found = {each["what"]: each for each in tree["measured"]}
    assert (code, tree["same"], looks) == (ExitCode.LIMIT_MISSED, True, [0, 1])
    assert found["accuracy, original"]["status"] == found["accuracy, final"]["status"] == "same"
    assert found["accuracy, final"]["note"] == "every sample"
    for batch in (1, 8):
        one = found[f"speed-up, batch {batch}"]
        assert (one["status"], one["note"]) == ("differs", "slower than it was")


def test_both_slower_alike(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The report's times become a tenth for both files: said, and red only where a factor is asked for."""
    monkeypatch.setattr(measuring, "_looks", lambda recipe: ((2, 0.75), (2, 0.75)))
    path = RUN / "report.json"
    tree = json.loads(path.read_text())
    for each in tree["latency"]:
        for side in ("original", "final"):
            each[side]["p50"] /= 10
        each["speedup"] |= {"low": 0.01, "high": 1000.0}  # this test is not about the ratio
    write_report(tree)
    code, (text,) = verify(capsys, "--measure", "--json")
    found = {each["what"]: each for each in json.loads(text)["measured"]}
    assert (code, found["times of both, batch 8"]["status"]) == (ExitCode.PASS, "noted")
    code, lines = verify(capsys, "--measure", "--slower", "2")
    assert code == ExitCode.LIMIT_MISSED
    assert "runs/small: what its lock says; 2 figure(s) differ from its report beyond what is allowed" in lines
    assert verify(capsys, "--slower", "2") == (
        ExitCode.USAGE, ["UsageError: --slower: nothing is timed without --measure; give both"],
    )  # fmt: skip


def test_another_machines_times_are_not_compared(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RUN / "report.json"
    tree = json.loads(path.read_text())
    here = tree["environment"]["cpu"]
    tree["environment"]["cpu"] = "another"
    write_report(tree)
    code, lines = verify(capsys, "--measure")
    assert code == ExitCode.UNPROVEN
    assert "runs/small: what its lock says; 1 could not be compared" in lines
    assert "Measured again" in [line.strip() for line in lines]
    code, (text,) = verify(capsys, "--measure", "--json")
    *answers, times = json.loads(text)["measured"]
    assert [(each["what"], each["status"]) for each in answers] == [
        ("accuracy, original", "same"), ("accuracy, final", "same"),
    ]  # fmt: skip
    assert (code, times["status"]) == (ExitCode.UNPROVEN, "not compared")
    assert times["note"] == f"measured on another machine (cpu: another there, {here} here)"


def test_what_differs_from_its_lock_is_not_measured(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (RUN / FINAL).write_bytes(b"x")
    code, lines = verify(capsys, "--measure")
    assert (code, lines[0]) == (ExitCode.LIMIT_MISSED, "asked again: not asked: a file differs")
