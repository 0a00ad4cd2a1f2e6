"""`edgesmith gate`: green on unchanged work, red on every planted fault and for its own reason."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgesmith.benches.gates import finished
from edgesmith.benches.report import words
from edgesmith.benches.report.report import MetricSource
from edgesmith.benches.timing import intervals
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from tests.cli.gated import BASELINE, RUN, gate, nudge, on_one_screen, red, refusal
from tests.cli.planted import (
    Weights,
    change_weights,
    judged_file,
    measure_again,
    relabel,
    replace_outputs,
    report_of,
    write_report,
)


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
    """A training that went wrong: the original itself is worse than the one of the last release.

    It answers 0 to everything, and so does the compressed one: between the two nothing is lost, on whatever CPU they
    were trained.
    """

    def other_head(weights: Weights) -> None:
        weights["module.head.bias"] += np.array([99, 0, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)

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


def test_predictions_of_another_run(
    last: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = (RUN / "report.json").read_text()
    with np.load(RUN / "predictions.npz") as stored:
        replace_outputs(RUN, "final", stored["final/logits"] * np.float32(-1))
    (RUN / "report.json").write_text(report)
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert found["file: predictions"].endswith("they are of another run or another model than small")
    with np.load(RUN / "predictions.npz") as stored:  # a worse original makes every loss smaller
        turned = {side: -stored[f"{side}/logits"] for side in ("final", "original")}
    for side, logits in turned.items():
        replace_outputs(RUN, side, logits)
    (RUN / "report.json").write_text(report)
    (check,) = (each for each in gate(capsys, ExitCode.LIMIT_MISSED)["checks"] if each["status"] == "fail")
    assert (check["name"], check["found"]) == ("predictions", "0.00 %")
    said = words.metric_value(report_of(RUN).original.metrics["accuracy"])
    assert check["promise"] == f"predictions.npz gives the report's accuracy of the original, {said}"
    whole = (RUN / "predictions.npz").read_bytes()
    np.savez_compressed(RUN / "predictions.npz", labels=np.zeros(10**6, np.int64))
    monkeypatch.setattr(finished, "_LARGE", 10**6)
    assert "predictions.npz: not a whole file of predictions: 8.00 MB in a file of " in refusal(capsys)
    (RUN / "predictions.npz").write_bytes(whole[:5000])
    assert "predictions.npz: not a whole file of predictions: " in refusal(capsys)
    (RUN / "predictions.npz").unlink()
    assert refusal(capsys) == ("ArtifactError: runs/small: no predictions.npz; run `edgesmith compress` again")


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


def test_as_many_answers_lost_as_won(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean is the same; who relied on an answer that was right has it wrong now."""
    report = report_of(RUN)
    limit = dataclasses.replace(report.limits[0], name="negative_flips", limit=0.04)
    for folder in (RUN, BASELINE.parent):
        write_report(folder, limits=(dataclasses.replace(report.limits[0], limit=0.15), limit))
    with np.load(RUN / "predictions.npz") as stored:
        logits, labels = stored["final/logits"].copy(), stored["labels"]
    right = np.flatnonzero(logits.argmax(1) == labels)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    assert len(wrong) >= 40
    logits[wrong] = np.eye(10, dtype=np.float32)[labels[wrong]]
    turned = right[: len(wrong)]
    logits[turned] = np.eye(10, dtype=np.float32)[(labels[turned] + 1) % 10]
    replace_outputs(RUN, "final", logits)
    found = red(gate(capsys, ExitCode.LIMIT_MISSED))
    assert list(found) == ["limit: negative_flips", "baseline: negative_flips"]
    share = intervals.share(len(wrong), len(labels), 0.95)
    assert found["baseline: negative_flips"].startswith(
        f"fail: {100 * share.value:.2f} % ({100 * share.low:.2f} to {100 * share.high:.2f}"
    )
    assert found["baseline: negative_flips"].endswith("); 497 test samples")
    (BASELINE.parent / "predictions.npz").unlink()
    checks = gate(capsys, ExitCode.LIMIT_MISSED)["checks"]
    (check,) = (each for each in checks if (each["group"], each["name"]) == ("baseline", "negative_flips"))
    assert (check["status"], check["note"]) == ("unproven", "not compared: no predictions.npz beside the baseline")


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


def test_the_metric_is_of_the_output_that_the_task_named(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever output comes first: a metric of another one goes by the same name."""
    assert report_of(RUN).metric_source == MetricSource(table="accuracy", output=None)
    with np.load(RUN / "predictions.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    first = {f"{side}/first": -arrays[f"{side}/logits"] for side in ("original", "final")}
    for folder in (RUN, BASELINE.parent):
        np.savez_compressed(folder / "predictions.npz", **{**first, **arrays})  # type: ignore[arg-type]  # mypy knows no types of names
        write_report(folder, metric_source=MetricSource(table="accuracy", output="logits"))
    gate(capsys, ExitCode.PASS)
    write_report(RUN, metric_source=MetricSource(table=None, output=None))  # the task's own: its task is asked
    assert "file: predictions" in red(gate(capsys, ExitCode.LIMIT_MISSED, baseline=False))
    assert refusal(capsys, "--baseline", str(BASELINE)) == (
        "ArtifactError: last/report.json: a baseline whose main metric 'accuracy' is another one, or of another output, "
        "than the run's of that name; give the last release's"
    )
    write_report(RUN, metric_source=MetricSource(table="acuracy", output=None))
    assert refusal(capsys).startswith(
        "RecipeError: runs/small/report.json: metric_source.table: unknown 'acuracy'; did you mean 'accuracy'?"
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
