"""`edgesmith gate` and the last release: noise, other machines, a bar that rises, and its file beside the new one."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import intervals, latency
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from tests.cli.gated import BASELINE, RUN, gate, nudge, on_one_screen, red, refusal
from tests.cli.planted import (
    change_weights,
    do_the_work_again,
    judged_file,
    relabel,
    replace_outputs,
    report_of,
    write_report,
)


def test_without_the_baselines_predictions(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (BASELINE.parent / "predictions.npz").unlink()
    change_weights(judged_file(RUN), nudge)
    relabel(RUN)
    report = report_of(RUN)
    value = report.final.metrics["accuracy"]
    found = next(each for each in gate(capsys, ExitCode.PASS)["checks"] if each["group"] == "baseline")
    assert found["note"] == "not paired: no predictions.npz beside the baseline; its stored interval was used"
    assert found["high"] == pytest.approx(value.high - value.low)
    found = red(gate(capsys, ExitCode.UNPROVEN, "--margin", "drop=0.01"))
    assert found["baseline: drop"].endswith(" test samples would settle it")


def test_a_loss_within_the_noise_says_how_many_samples_would_do(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(RUN / "predictions.npz") as stored:
        logits, labels = stored["final/logits"].copy(), stored["labels"]
    right = np.flatnonzero(logits.argmax(1) == labels)[:3]
    logits[right] *= -1
    replace_outputs(RUN, "final", logits)
    change_weights(judged_file(RUN), nudge)
    relabel(RUN)
    found = red(gate(capsys, ExitCode.UNPROVEN, "--margin", "drop=0.01"))
    assert found == {
        "baseline: drop": "unproven: 0.60 points (-0.17 to 1.64); paired over 497 test samples; at least 1,949 test "
        "samples would settle it"
    }


def test_a_recipe_that_promises_less_is_seen_and_is_no_new_bar(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = report_of(RUN).limits
    assert [each.name for each in limits] == ["drop", "file_ratio"]
    tight = [dataclasses.replace(each, limit=each.limit / 2) for each in limits]
    write_report(BASELINE.parent, limits=(*tight, dataclasses.replace(limits[0], name="metric", limit=0.5)))
    found = gate(capsys, ExitCode.PASS, "--ratchet")
    said = f"drop is {limits[0].limit:g}, it was {tight[0].limit:g}; file_ratio is {limits[1].limit:g}, it was "
    said += f"{tight[1].limit:g}; metric is gone, it was 0.5"
    check = next(each for each in found["checks"] if each["name"] == "limits")
    assert (check["status"], check["found"]) == ("pass", said)
    assert found["ratchet"] == f"{BASELINE} stays as it is: the recipe promises less than before: {said}"
    (compared,) = [each for each in found["checks"] if (each["group"], each["name"]) == ("baseline", "drop")]
    assert compared["limit"] == tight[0].limit


def both_with_latency(ours: tuple[float, float, float], last: tuple[float, float, float]) -> None:
    """A limit on latency in the new report and in the last release's: milliseconds measured, and their bounds."""
    limits = report_of(RUN).limits
    for folder, (measured, low, high) in ((RUN, ours), (BASELINE.parent, last)):
        limit = dataclasses.replace(limits[0], name="latency_ms", limit=9.0, measured=measured, low=low, high=high)
        write_report(folder, limits=(*limits, limit))


def test_times_of_another_machine(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(RUN)
    both_with_latency((1.0, 0.9, 1.1), (0.5, 0.49, 0.51))
    assert red(gate(capsys, ExitCode.LIMIT_MISSED)) == {
        "baseline: latency_ms": "fail: +100.0 % (+76.5 % to +124.5 %); "
    }
    write_report(BASELINE.parent, environment={**report.environment, "cpu": "another"})
    assert red(gate(capsys, ExitCode.UNPROVEN)) == {
        "baseline: latency_ms": "unproven: not compared; not compared: measured on another machine (cpu: another there, "
        f"{report.environment['cpu']} here); run the last release on this one"
    }
    write_report(BASELINE.parent, environment={**report.environment, "threads": 2})  # of the last release
    assert red(gate(capsys, ExitCode.UNPROVEN)) == {
        "baseline: latency_ms": "unproven: not compared; not compared: measured on another machine (threads: 2 there, "
        "1 here); run the last release on this one"
    }
    on_one_screen(capsys, ExitCode.UNPROVEN, "baseline: latency_ms", "(threads: 2 there, 1 here)")
    write_report(BASELINE.parent, environment=report.environment, limits=report.limits)
    assert red(gate(capsys, ExitCode.UNPROVEN)) == {
        "baseline: latency_ms": "unproven: not compared; not compared: both runs need this limit, for only a limit has "
        "its interval in report.json"
    }


def test_two_reports_of_one_file_are_green_unless_one_is_slower(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise of two measurements is no loss; another version of the runtime, or another file, has to prove it."""
    report = report_of(RUN)
    both_with_latency((1.0, 0.9, 1.1), (0.95, 0.85, 1.05))
    check = gate(capsys, ExitCode.PASS)["checks"][-1]
    assert (check["group"], check["name"]) == ("baseline", "latency_ms")
    assert (check["note"], check["found"]) == ("the same file as the last release's", "+5.3 % (-14.3 % to +29.4 %)")
    unproven = {"baseline: latency_ms": "unproven: +5.3 % (-14.3 % to +29.4 %); "}
    write_report(BASELINE.parent, environment={**report.environment, "onnxruntime": "1.24.0"})
    assert red(gate(capsys, ExitCode.UNPROVEN)) == unproven
    write_report(BASELINE.parent, environment=report.environment)
    other = dataclasses.replace(report.stages[0], digest="0" * 64)  # a speed-up is of what it was measured against
    write_report(BASELINE.parent, stages=(other, *report.stages[1:]))
    assert red(gate(capsys, ExitCode.UNPROVEN)) == unproven
    write_report(BASELINE.parent, stages=report.stages)
    change_weights(judged_file(RUN), nudge)
    relabel(RUN)
    assert red(gate(capsys, ExitCode.UNPROVEN)) == unproven


def test_the_bar_rises_and_never_falls(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Path("bar/report.json")
    options = ("--baseline", str(bar), "--ratchet")
    assert gate(capsys, ExitCode.PASS, *options, baseline=False)["ratchet"].startswith("bar/report.json is the new bar")
    (first,) = bar.parent.glob("predictions-*.npz")
    said = gate(capsys, ExitCode.PASS, *options, baseline=False)["ratchet"]
    assert said == "bar/report.json stays as it is: nothing is proven to be better"

    smaller = dataclasses.replace(report_of(RUN).final, file_bytes=report_of(RUN).final.file_bytes - 5000)
    write_report(RUN, final=smaller)
    assert gate(capsys, ExitCode.PASS, *options, baseline=False)["ratchet"].startswith("bar/report.json is the new bar")
    assert report_of(bar.parent).final.file_bytes == smaller.file_bytes
    assert list(bar.parent.iterdir()) and first.exists(), "the same predictions keep their name"

    before = bar.read_bytes()
    write_report(RUN, final=dataclasses.replace(smaller, file_bytes=smaller.file_bytes + 20))
    said = gate(capsys, ExitCode.PASS, *options, baseline=False)["ratchet"]
    assert said == "bar/report.json stays as it is: within its margin, but worse by its estimate: file"
    with np.load(RUN / "predictions.npz") as stored:
        replace_outputs(RUN, "final", -stored["final/logits"])
    said = gate(capsys, ExitCode.LIMIT_MISSED, *options, baseline=False)["ratchet"]
    assert said == "bar/report.json stays as it is: the gate says fail"
    assert bar.read_bytes() == before


def test_the_bar_rises_though_another_answer_is_right(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other file has some answers wrong that were right; as many won, the limit on them kept: it may be better."""
    report, options = report_of(RUN), ("--baseline", "bar/report.json", "--ratchet")
    limits = [dataclasses.replace(report.limits[0], name=name, limit=0.3) for name in ("drop", "negative_flips")]
    write_report(RUN, limits=(*limits, *report.limits[1:]))
    gate(capsys, ExitCode.PASS, *options, baseline=False)
    with np.load(RUN / "predictions.npz") as stored:
        logits, labels = stored["final/logits"].copy(), stored["labels"]
    right = logits.argmax(1) == labels
    logits[[right.argmin(), right.argmax()]] = np.eye(10, dtype=np.float32)[
        [labels[right.argmin()], (labels[right.argmax()] + 1) % 10]
    ]
    replace_outputs(RUN, "final", logits)
    write_report(RUN, final=dataclasses.replace(report.final, file_bytes=report.final.file_bytes - 5000))
    found = gate(capsys, ExitCode.PASS, *options, baseline=False)
    assert found["ratchet"].startswith("bar/report.json is the new bar")
    checks = {(each["group"], each["name"]): each["measured"] for each in found["checks"]}
    assert checks["baseline", "negative_flips"] == pytest.approx(1 / 497)


def beside(capsys: pytest.CaptureFixture[str], code: int, *options: str) -> dict[str, dict[str, Any]]:
    """The comparisons with the last release's run directory."""
    found = gate(capsys, code, "--baseline", "last run", *options, baseline=False)
    return {each["name"]: each for each in found["checks"] if each["group"] == "baseline"}


def with_limits(run: Path) -> None:
    """Limits on times, which the report's own interval keeps."""
    report = report_of(run)
    limit = dataclasses.replace(report.limits[0], name="latency_ms", limit=99.0, measured=1.0, low=0.9, high=1.1)
    write_report(run, limits=(*report.limits, limit))


def test_the_last_releases_file_beside_the_new_one(
    last: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged work is green without a clock; a file that does the work over and over is slower, and by how much."""
    monkeypatch.setattr(intervals, "looks", lambda restarts, confidence: ((2, 0.75),))  # fewer than for a release
    with_limits(RUN)
    shutil.copytree(RUN, "last run")
    same = beside(capsys, ExitCode.PASS)["latency_ms"]
    assert (same["low"], same["high"], same["note"]) == (0, 0, "the same file as the last release's")
    write_report(Path("last run"), environment={**report_of(RUN).environment, "cpu": "another"})
    do_the_work_again(judged_file(RUN), 6)
    relabel(RUN)
    slower = beside(capsys, ExitCode.LIMIT_MISSED, "--margin", "file=9")["latency_ms"]
    assert slower["status"] == "fail" and slower["low"] > 0.5, "the last release's machine is of no interest now"
    assert slower["note"].startswith("batch 1; both files timed side by side, noise floor ")


def test_a_slowed_gpu_beside_the_last_release_is_unproven(
    last: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hot(program: str, job: dict[str, Any], *rest: Any) -> str:
        np.savez(job["result"], slowdowns=0x40, clocks="watched")
        return ""

    monkeypatch.setattr(latency.child, "run", hot)
    with_limits(RUN)
    shutil.copytree(RUN, "last run")
    change_weights(judged_file(RUN), nudge)
    relabel(RUN)
    assert main(["gate", str(RUN), "--baseline", "last run"]) == ExitCode.UNPROVEN
    assert capsys.readouterr().err.splitlines()[-1].startswith("VoidError: the GPU was slowed down (hardware thermal")


def test_a_run_directory_that_cannot_stand_beside(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_limits(RUN)
    shutil.copytree(RUN, "last run")
    change_weights(judged_file(RUN), nudge)
    relabel(RUN)
    write_report(Path("last run"), environment={**report_of(RUN).environment, "threads": 2})
    found = beside(capsys, ExitCode.UNPROVEN)["latency_ms"]
    assert found["note"] == "not compared: the last release ran with 2 thread(s), this run with 1"
    path = judged_file(Path("last run"))
    path.write_bytes(path.read_bytes()[:100])
    said = refusal(capsys, "--baseline", "last run")
    assert (
        said.endswith("bytes; give --baseline the report.json to compare what it holds") and "truncated: 100 of" in said
    )
    assert refusal(capsys, "--baseline", "last run", "--ratchet") == (
        "UsageError: --ratchet: --baseline last run is a directory; give the report.json of the bar"
    )
    Path("empty").mkdir()
    assert "empty: not a finished run (no report.json)" in refusal(capsys, "--baseline", "empty")
