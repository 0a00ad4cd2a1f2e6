"""`edgesmith gate`: green on unchanged work, red on every planted fault and for its own reason."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import intervals, latency
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from tests.cli.planted import (
    Weights,
    change_weights,
    do_the_work_again,
    judged_file,
    measure_again,
    relabel,
    replace_outputs,
    report_of,
    write_report,
)

RUN = Path("runs/small")
BASELINE = Path("last/report.json")


@pytest.fixture
def last(finished: Path) -> Path:
    """The last release is the finished run itself, with the float form judged whatever was the fastest."""
    shutil.copy(RUN / "measurements/03-export/model.onnx", judged_file(RUN))
    relabel(RUN, precision="float32", dialect="float")
    measure_again(RUN, "final", judged_file(RUN))
    limits = tuple(each for each in report_of(RUN).limits if each.name in ("drop", "file_ratio"))
    write_report(
        RUN, limits=limits, final=dataclasses.replace(report_of(RUN).final, file_bytes=judged_file(RUN).stat().st_size)
    )
    BASELINE.parent.mkdir()
    shutil.copy(RUN / "report.json", BASELINE)
    shutil.copy(RUN / "predictions.npz", BASELINE.parent)
    return finished


def gate(capsys: pytest.CaptureFixture[str], code: int, *options: str, baseline: bool = True) -> dict[str, Any]:
    given = ["--baseline", str(BASELINE)] if baseline else []
    assert main(["gate", str(RUN), *given, "--json", *options]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def red(found: dict[str, Any]) -> dict[str, str]:
    """What is not passed: "group: name" -> status, what was found and the note."""
    return {
        f"{each['group']}: {each['name']}": f"{each['status']}: {each['found']}; {each['note']}"
        for each in found["checks"]
        if each["status"] != "pass"
    }


def on_one_screen(capsys: pytest.CaptureFixture[str], code: int, check: str, *said: str) -> None:
    """What a person sees: 40 lines of 80 columns, in which the failed check stands last and its reason in the table."""
    assert main(["gate", str(RUN), "--baseline", str(BASELINE)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0]:
                rows.append(cells)
            else:  # a cell that goes on
                rows[-1] = [" ".join((a, b)).strip() for a, b in zip(rows[-1], cells, strict=True)]
    red = [" ".join(row) for row in rows if row[0] != "pass"]
    for table in "\n".join(lines).split("┡")[1:]:
        statuses = re.findall(r"^│ (\w+)", table, re.MULTILINE)
        assert statuses == sorted(statuses, key=["fail", "unproven", "pass"].index), "what is red comes first"
    for words in said:
        assert any(words in row for row in red), f"{words!r} is not in {red}"
    verdict = " ".join(" ".join(lines).split("GATE: ")[1].split())
    assert check in verdict


def nudge(weights: Weights) -> None:
    """Another file that answers the same."""
    weights["module.head.bias"] *= np.float32(1.0001)


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["gate", str(RUN), *options]) == ExitCode.USAGE
    return capsys.readouterr().err.strip()


def test_unchanged_work_is_green_every_time(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = gate(capsys, ExitCode.PASS)
    assert [f"{each['group']}: {each['name']}" for each in first["checks"]] == [
        "file: onnxruntime-cpu", "file: tensorrt", "file: predictions", "limit: drop", "limit: file_ratio",
        "baseline: drop", "baseline: file",
    ]  # fmt: skip
    assert first["checks"][5]["note"] == "the same file as the last release's"
    assert (first["checks"][5]["low"], first["checks"][5]["high"]) == (0, 0)
    for _ in range(20):
        assert gate(capsys, ExitCode.PASS) == first


def test_one_screen(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(RUN), "--baseline", str(BASELINE)]) == ExitCode.PASS
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert lines[0] == "3 files are what the run wrote and what they are called"
    assert " ".join(lines[-2:]).split("GATE: ")[1] == (
        "pass - every limit is kept, and nothing is worse than the last release  beyond its margin, proven at 95 % "
        "confidence"
    )


def test_wrong_weights(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that went wrong: the original itself is worse than the one of the last release."""

    def other_head(weights: Weights) -> None:
        weights["module.head.bias"] += np.array([9, 0, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)

    original = RUN / "measurements/00-original/model.onnx"
    for path, side in ((original, "original"), (judged_file(RUN), "final")):
        change_weights(path, other_head)
        measure_again(RUN, side, path)
    relabel(RUN)
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert list(found) == ["baseline: drop"]
    assert found["baseline: drop"].startswith("fail: ")
    assert found["baseline: drop"].endswith(
        "paired over 497 test samples; the original has lost already, before compression: look at its weights and its "
        "training"
    )
    on_one_screen(capsys, ExitCode.LIMIT_MISSED, "baseline: drop", "the original has lost already, before compression")


def test_swapped_channels(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pruning that hands a layer its inputs in the wrong order: the original is what it was."""

    def swap(weights: Weights) -> None:
        weights["module.head.weight"] = weights["module.head.weight"][:, ::-1].copy()

    path = judged_file(RUN)
    change_weights(path, swap)
    measure_again(RUN, "final", path)
    relabel(RUN)
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert list(found) == ["limit: drop", "baseline: drop"]
    assert found["baseline: drop"].endswith("; the original has not: look at what the stages and the targets' files do")
    on_one_screen(
        capsys, ExitCode.LIMIT_MISSED, "limit: drop, baseline: drop", "the original has not: look at what the"
    )


def test_a_float_file_labelled_int8(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RUN / "measurements/00-original/model.onnx", judged_file(RUN))
    relabel(RUN, precision="int8")
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert found["file: onnxruntime-cpu"] == (
        "fail: labelled int8, but no layer in it is quantized: this is a float file; "
    )
    assert found["limit: file_ratio"] == "fail: 100 % of the original; "
    on_one_screen(
        capsys, ExitCode.LIMIT_MISSED, "file: onnxruntime-cpu", "labelled int8, but no layer in it is quantized"
    )


def test_an_int8_file_labelled_float(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RUN / "artifacts/tensorrt/model.onnx", judged_file(RUN))
    relabel(RUN, precision="float32")
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert found == {"file: onnxruntime-cpu": "fail: labelled float32, but it holds quantized layers; "}


def test_stale_calibration(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An INT8 file that was made before the task got other calibration data, under a report that was made after it."""
    shutil.copy(RUN / "artifacts/tensorrt/model.onnx", judged_file(RUN))
    relabel(RUN, precision="int8")
    gate(capsys, ExitCode.PASS)
    fresh = report_of(RUN).calibration_digest
    write_report(RUN, calibration_digest="0" * 64)
    assert red(gate(capsys, ExitCode.LIMIT_MISSED)) == dict.fromkeys(
        ("file: onnxruntime-cpu", "file: tensorrt"),
        "fail: stale calibration: its ranges come from other samples than the run's 000000000000 (those with SHA-256 "
        f"{fresh[:12]}); ",
    )
    on_one_screen(
        capsys, ExitCode.LIMIT_MISSED, "file: tensorrt", "stale calibration: its ranges come from other samples"
    )


def test_a_truncated_file(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = judged_file(RUN)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:10_000])
    assert red(gate(capsys, ExitCode.LIMIT_MISSED)) == {
        "file: onnxruntime-cpu": f"fail: truncated: 10,000 of {whole:,} bytes; "
    }
    on_one_screen(capsys, ExitCode.LIMIT_MISSED, "file: onnxruntime-cpu", f"truncated: 10,000 of {whole:,} bytes")
    path.unlink()
    assert red(gate(capsys, ExitCode.LIMIT_MISSED)) == {
        "file: onnxruntime-cpu": "fail: artifacts/onnxruntime-cpu/model.onnx is missing; "
    }


def test_another_file_than_the_judged_one(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = judged_file(RUN)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (text,) = red(gate(capsys, ExitCode.LIMIT_MISSED)).values()
    assert text.startswith("fail: not the file that was judged: SHA-256 ")


def test_predictions_of_another_run(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = (RUN / "report.json").read_text()
    with np.load(RUN / "predictions.npz") as stored:
        replace_outputs(RUN, "final", stored["final/logits"] * np.float32(-1))
    (RUN / "report.json").write_text(report)
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert found["file: predictions"].endswith("they are of another run or another model than small")
    (RUN / "predictions.npz").write_bytes((RUN / "predictions.npz").read_bytes()[:5000])
    assert "predictions.npz: not a whole file of predictions: " in refusal(capsys)
    (RUN / "predictions.npz").unlink()
    assert refusal(capsys) == ("ArtifactError: runs/small: no predictions.npz; run `edgesmith compress` again")


def test_a_baseline_of_something_else(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--baseline", str(BASELINE))
    for field, what, value in (
        ("task", "task", "other"), ("target", "target", "openvino"), ("main_metric", "main metric", "top5"),
    ):  # fmt: skip
        write_report(BASELINE.parent, **{field: value})
        assert refusal(capsys, *options) == (
            f"ArtifactError: last/report.json: a baseline of another {what}: '{value}', the run's is "
            f"'{getattr(report_of(RUN), field)}'; give the last release's"
        )
        shutil.copy(RUN / "report.json", BASELINE)
    write_report(BASELINE.parent, test_digest="0" * 64)  # as after swapped channels in the task's preprocessing
    assert refusal(capsys, *options) == (
        "ArtifactError: last/report.json: a baseline of other test data: 497 samples there, 497 here, and they are not "
        "the same (values, order, labels or preprocessing); run the last release's recipe on this data and give that "
        "report"
    )


def test_what_cannot_be_read(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--baseline", "none.json") == (
        "ArtifactError: none.json: cannot read the report: No such file or directory"
    )
    assert refusal(capsys, "--ratchet") == "UsageError: --ratchet: needs --baseline, the file that holds the bar"
    assert "--margin: unknown 'dorp'; did you mean 'drop'?" in refusal(capsys, "--margin", "dorp=1")
    BASELINE.write_text(BASELINE.read_text().replace('"predictions.npz"', '"../predictions.npz"'))
    assert refusal(capsys, "--baseline", str(BASELINE)) == (
        "ArtifactError: last/report.json: predictions: '../predictions.npz' must be a file beside the report"
    )
    whole = (RUN / "report.json").read_text()
    for old, new, said in (
        (
            '"target": "onnxruntime-cpu",\n  "verdict"',
            '"target": "x",\n  "verdict"',
            "artifacts: no file of its target 'x'",
        ),
        ('"name": "drop"', '"name": "<b>"', "limits: there is no limit '<b>'"),
    ):
        assert old in whole
        (RUN / "report.json").write_text(whole.replace(old, new))
        assert refusal(capsys) == f"ArtifactError: runs/small/report.json: {said}"
    assert main(["gate", "nowhere"]) == ExitCode.USAGE
    assert "nowhere: not a finished run (no report.json)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gate", str(RUN), "--margin", "drop=-1"])
    assert "'drop=-1': write it as NAME=VALUE with a number of at least 0" in capsys.readouterr().err


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
        "baseline: drop": "unproven: 0.60 points (-0.13 to 1.34); paired over 497 test samples; at least 1,291 test "
        "samples would settle it"
    }


def test_times_of_another_machine(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(RUN)
    limit = dataclasses.replace(report.limits[0], name="latency_ms", limit=9.0, measured=1.0, low=0.9, high=1.1)
    write_report(RUN, limits=(*report.limits, limit))
    slower = dataclasses.replace(limit, measured=0.5, low=0.49, high=0.51)
    write_report(BASELINE.parent, limits=(*report.limits, slower))
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


def test_one_class_broken_while_the_mean_holds(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(RUN)
    limit = dataclasses.replace(report.limits[0], name="class_drop", limit=0.3)
    for folder in (RUN, BASELINE.parent):
        write_report(folder, limits=(dataclasses.replace(report.limits[0], limit=0.15), limit))
    change_weights(judged_file(RUN), nudge)
    relabel(RUN)
    assert gate(capsys, ExitCode.PASS)["status"] == "pass"
    with np.load(RUN / "predictions.npz") as stored:
        logits, labels = stored["final/logits"].copy(), stored["labels"]
    broken = labels == 7
    logits[broken] = np.eye(10, dtype=np.float32)[1]  # every 7 is taken for a 1
    replace_outputs(RUN, "final", logits)
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert list(found) == ["limit: class_drop", "baseline: class_drop"], "the mean holds"
    assert all(
        text.endswith(f"class '7', the worst of 10; {broken.sum()} test samples") and text.startswith("fail: ")
        for text in found.values()
    )
    on_one_screen(
        capsys, ExitCode.LIMIT_MISSED, "limit: class_drop, baseline: class_drop", "class '7', the worst of 10"
    )


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
