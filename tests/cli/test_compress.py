"""`edgesmith compress` as a user runs it: what it leaves, what it says, and what a kill or a change does to it."""

import json
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesmith
from edgesmith.benches.report.report import to_json
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from tests.quick import BRIEF

COMMAND = [sys.executable, "-W", "error::UserWarning", "-m", "edgesmith", "compress", "recipe.toml"]


def compress(*options: str, code: int = ExitCode.PASS) -> dict[str, Any]:
    assert main(["compress", "recipe.toml", *options]) == code
    report: dict[str, Any] = json.loads(Path("runs/small/report.json").read_text())
    return report


def digests(report: dict[str, Any]) -> list[str]:
    return [stage["digest"] for stage in report["stages"]]


def result() -> dict[str, Any]:
    """The report of the finished run."""
    report: dict[str, Any] = json.loads(Path("runs/small/report.json").read_text())
    return report


def stage_times() -> dict[str, int]:
    return {path.name: (path / "done.json").stat().st_mtime_ns for path in Path("runs/small/stages").iterdir()}


def test_the_report(finished: Path) -> None:
    report = result()
    assert report["schema"] == "edgesmith.report/1"
    assert report["target"] == "onnxruntime-cpu"
    assert report["verdict"] == "pass"
    assert [limit["name"] for limit in report["limits"]] == ["drop", "file_ratio"]
    assert [(stage["id"], stage["name"]) for stage in report["stages"]] == [
        ("original", "original"), ("prune", "prune"), ("distill", "distill"), ("export", "export"), ("quantize", "quantize"),
    ]  # fmt: skip
    times = {stage["id"]: stage["latency_ms"] for stage in report["stages"]}
    assert times["export"] == times["distill"], "the same file, measured once"
    original, final = report["original"], report["final"]
    assert original["accuracy"] == original["metrics"]["accuracy"]["value"] > 0.8
    assert final["macs"] <= 0.6 * original["macs"]
    assert final["file_bytes"] < 0.9 * original["file_bytes"]
    assert final["peak_memory_bytes"] > 0
    assert 0 <= final["held_memory_bytes"] < 5_000_000
    assert 0 < final["start"]["open_ms"]["low"] <= final["start"]["open_ms"]["value"] < 10_000
    assert final["latency_ms"]["p50"] <= final["latency_ms"]["p90"] <= final["latency_ms"]["p99"]
    assert report["speedup"]["low"] <= report["speedup"]["median"] <= report["speedup"]["high"]
    assert [entry["batch"] for entry in report["latency"]] == [1, 8]
    measured, unmeasured = report["artifacts"]
    assert (measured["target"], measured["measured"]) == ("onnxruntime-cpu", True)
    assert (unmeasured["target"], unmeasured["measured"], unmeasured["dialect"]) == ("tensorrt", False, "s8-symmetric")
    assert unmeasured["reason"] == "no CUDA device"
    assert (unmeasured["precision"], unmeasured["file_bytes"] < 0.5 * original["file_bytes"]) == ("int8", True)
    given_back = re.search(r" with [0-9]+ layers? in float ", measured["reason"])  # such a form is one more
    assert measured["reason"].startswith(
        f"the fastest of {3 + bool(given_back)} forms (against this network in float, at batch sizes 1 / 8: "
    )
    assert len(measured["tried"]) >= 2 and unmeasured["tried"][0]["latency_ms"] is None
    assert sum(form["taken"] for form in measured["tried"]) == (measured["precision"] == "int8")
    for form in measured["tried"]:
        assert 0 <= form["accuracy"] <= 1 and (form["latency_ms"] is None or form["latency_ms"] > 0)
    assert any(form["latency_ms"] for form in measured["tried"])
    for artifact in report["artifacts"]:
        assert (Path("runs/small") / artifact["path"]).stat().st_size == artifact["file_bytes"]


def test_the_run_directory(finished: Path, finished_once: Path) -> None:
    run, final = Path("runs/small"), result()["final"]
    with np.load(run / "predictions.npz", allow_pickle=False) as predictions:
        assert predictions["final/logits"].shape == predictions["original/logits"].shape == (497, 10)
        right = predictions["final/logits"].argmax(1) == predictions["labels"]
    assert final["accuracy"] == pytest.approx(right.mean())
    html = (run / "report.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", "")
    assert tomllib.loads((run / "recipe.toml").read_text())["stages"][0]["importance"] == "magnitude-l2"
    assert "verdict: pass" in (run / "log.txt").read_text()
    assert not list(run.rglob(".partial-*"))
    for path in run.rglob("*.onnx"):
        assert str(finished_once.parent).encode() not in path.read_bytes(), "a path of this machine in an artefact"


def test_a_pipe_gets_plain_text(finished: Path) -> None:
    out, progress = Path("stdout.txt").read_text(), Path("stderr.txt").read_text()
    assert "\x1b" not in out + progress
    assert [line.split()[0] for line in progress.splitlines() if not line.startswith(" ")] == [
        "original:", "prune", "distill", "export", "quantize", "measuring",
    ]  # fmt: skip
    assert "VERDICT: pass" in out
    assert "report: runs/small/report.html" in out


def test_a_second_run_does_nothing_again_and_prints_json_alone(finished: Path) -> None:
    first, times = result(), stage_times()
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == result() == first
    assert done.stderr == ""
    assert stage_times() == times
    assert (finished / "trained.log").read_text() == "once\n"


def test_a_changed_recipe_redoes_from_the_first_changed_stage(finished: Path) -> None:
    before, times = result(), stage_times()
    after = compress(*BRIEF, "--set", "quantize.calibrator=min-max")
    now = stage_times()
    assert [name for name in sorted(now) if now[name] != times[name]] == ["04-quantize"]
    assert digests(after)[:4] == digests(before)[:4]
    assert digests(after)[4] != digests(before)[4]
    compress(*BRIEF, "--set", "quantize.calibrator=min-max", "--set", "limits.drop=0.06")
    assert stage_times() == now  # limits change no model


def test_a_stage_of_the_users_own_is_done_again_when_its_code_changes(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path("own_passing_stage.py")
    own.write_text("from edgesmith.compressor.export import Export\n\n\nclass Passing(Export):\n    name = 'passing'\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    recipe = Path("recipe.toml").read_text().replace('use = "export"', 'use = "own_passing_stage:Passing"')
    Path("own.toml").write_text(recipe)
    again = []
    for comment in ("", "", "# changed\n"):
        own.write_text(own.read_text() + comment)
        main(["compress", "own.toml", "--out", "runs/small"])
        said = capsys.readouterr().err
        again.append(re.search(r"\nPassing: passing\n.*", said).group().endswith("(from an earlier run)"))
    assert again == [False, True, False]


def test_python_gives_the_same_result(finished: Path) -> None:
    by_command, times = result(), stage_times()
    by_python = edgesmith.compress(None, "recipe.toml", out="runs/small")
    assert json.loads(to_json(by_python)) == by_command
    assert stage_times() == times  # the same keys: what the command finished is what Python asks for


def test_the_verdict_may_be_against_a_stage(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, times = result(), stage_times()
    recipe = finished / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[[stages]]", 'against = "distill"\n\n[[stages]]', 1))
    report = compress(*BRIEF, "--set", "limits.file_ratio=9")
    assert stage_times() == times  # what is judged against changes no model
    assert (before["against"], report["against"]) == ("original", "distill")
    assert report["original"]["macs"] == report["final"]["macs"] == before["final"]["macs"]  # both are pruned
    assert report["guilty_stage"] not in ("prune", "prune + distill")  # they come before
    distilled = next(stage for stage in report["stages"] if stage["id"] == "distill")["file_bytes"]
    assert report["original"]["file_bytes"] == distilled < before["original"]["file_bytes"]
    assert report["limits"][1]["measured"] == pytest.approx(report["final"]["file_bytes"] / distilled)
    printed = capsys.readouterr().out
    assert "small on onnxruntime-cpu: distill against compressed" in printed
    assert "% of distill" in printed
    assert "<h2>Distill against compressed</h2>" in Path("runs/small/report.html").read_text()
    recipe.write_text(recipe.read_text().replace('against = "distill"', 'against = "quantize"'))
    assert main(["compress", "recipe.toml"]) == ExitCode.USAGE
    assert (
        "recipe.toml: against: unknown 'quantize'; known: distill, export, original, prune" in capsys.readouterr().err
    )


def test_a_limit_missed_and_one_that_cannot_be_proven(finished: Path) -> None:
    assert compress("--set", "limits.file_ratio=0.01", code=ExitCode.LIMIT_MISSED)["verdict"] == "fail"
    report = compress("--set", "limits.drop=0.0001", code=ExitCode.UNPROVEN)
    assert report["verdict"] == "unproven"
    assert report["limits"][0]["status"] == "unproven"
    assert "test samples" in report["limits"][0]["note"]


def test_time_that_decides_nothing_is_measured_for_longer_once(finished: Path) -> None:
    longer = Path("runs/small/measurements/costs-longer/done.json")
    for _ in range(4):  # another limit may bring another form of the file, which is as fast as it is
        measured = min(result()["latency"], key=lambda entry: entry["speedup"]["median"])["speedup"]["median"]
        limit = ["compress", "recipe.toml", "--set", f"limits.speedup={measured}"]  # inside its interval, so undecided
        assert main(limit) in (ExitCode.PASS, ExitCode.LIMIT_MISSED, ExitCode.UNPROVEN)
        if longer.exists():
            break
    looks = [json.loads(path.read_text())["facts"] for path in (longer.parents[1] / "costs" / "done.json", longer)]
    assert [each["latency"][0]["restarts"] for each in looks] == [5, 15]
    assert looks[0]["fresh"] == looks[1]["fresh"]
    assert [entry["speedup"]["median"] for entry in result()["latency"]] == [
        each["speedup"][0]["value"] for each in looks[1]["latency"]
    ]
    assert "the time decides no limit yet: measuring for longer" in Path("runs/small/log.txt").read_text()
    done = longer.stat().st_mtime_ns
    main(limit)
    assert longer.stat().st_mtime_ns == done


def test_a_target_that_is_not_here_is_unproven(finished: Path) -> None:
    recipe = finished / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('["onnxruntime-cpu", "tensorrt"]', '["tensorrt"]'))
    report = compress("--set", "prune.round_to=8", code=ExitCode.UNPROVEN)
    drop, size = report["limits"]
    assert (drop["status"], drop["note"]) == ("unproven", "not measured: no CUDA device")
    assert size["status"] == "pass"
    assert report["speedup"] is None
    assert report["stages"][-1]["latency_ms"] is None


def test_a_dry_run_plans_and_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "recipe.toml", "--dry-run"]) == ExitCode.PASS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "task 'small', judged on onnxruntime-cpu, results in runs/small"
    assert [line.split()[1] for line in lines[1:-1]] == [
        "prune", "distill", "export", "quantize", "files", "build", "measure",
    ]  # fmt: skip
    assert lines[-1].endswith("nothing was done")
    assert not (project / "runs").exists()
    assert main(["compress", "recipe.toml", "--dry-run", "--json"]) == ExitCode.PASS
    assert [step["id"] for step in json.loads(capsys.readouterr().out)["steps"]][-1] == "measure"


def test_a_second_run_at_the_same_time_is_refused_and_ctrl_c_is_survived(project: Path) -> None:
    with subprocess.Popen(COMMAND, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as first:
        assert first.stderr is not None
        first.stderr.readline()  # it has the directory now
        second = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGINT)
        rest = first.stderr.read()
    assert second.returncode == ExitCode.USAGE
    assert second.stderr.strip() == (
        "RunDirectoryError: runs/small: another run is writing here; wait for it, or choose another directory with --out"
    )
    assert first.returncode == ExitCode.INTERRUPTED
    assert rest.strip().splitlines()[-1] == "interrupted; the same command goes on where it stopped"


def test_an_interrupt_inside_generated_code_ends_as_any_other(project: Path) -> None:
    """As when it comes while a dataclass is made; CPython would have `python -m` end by the signal (pythonrun.c)."""
    (project / "task.py").write_text('exec("raise KeyboardInterrupt")')
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted; the same command goes on where it stopped\n")


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_one_never_killed(project: Path, finished_once: Path) -> None:
    """SIGKILL at moments of chance after two stages began: the same stages, digest for digest.

    benches/results/kills.py does so a hundred times, at moments all over a run.
    """
    for stage in ("prune", "quantize"):
        with subprocess.Popen([*COMMAND, *BRIEF], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            assert any(line.startswith(stage) for line in run.stderr)
            time.sleep(1.5 * random.random())
            run.kill()
    report = compress(*BRIEF)
    whole = json.loads((finished_once / "runs" / "small" / "report.json").read_text())
    assert digests(report) == digests(whole)
    # The judged file's form is chosen by time, which no two runs share; that of TensorRT is not.
    unmeasured = [each["artifacts"][1]["digest"] for each in (report, whole)]
    assert unmeasured[0] == unmeasured[1]
    assert [each["accuracy"] for each in report["stages"][:-1]] == [each["accuracy"] for each in whole["stages"][:-1]]
    assert not list(Path("runs").rglob(".partial-*"))
