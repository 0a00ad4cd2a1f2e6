"""`edgesmith audit`: a file that is right on clean data and broken under one corruption is found; an equal one passes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.audits.corruptions import CORRUPTIONS
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode

from .planted import break_bright_images, judged_file, measure_again, relabel, report_of

RUN = Path("runs/small")
ORIGINAL = RUN / "measurements/00-original/model.onnx"


def audit(capsys: pytest.CaptureFixture[str], code: int, *limits: str) -> dict[str, Any]:
    given = [part for limit in limits for part in ("--limit", limit)]
    assert main(["audit", str(RUN), "--json", *given]) == code
    printed = capsys.readouterr().out
    assert printed == (RUN / "audit.json").read_text()
    found: dict[str, Any] = json.loads(printed)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["audit", str(RUN), *options]) == ExitCode.USAGE
    return capsys.readouterr().err.strip()


def measurements() -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in RUN.glob("measurements/*/done.json")}


def test_a_file_that_is_broken_under_one_corruption(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ORIGINAL, judged_file(RUN))
    break_bright_images(judged_file(RUN), mean=0.52)
    before = report_of(RUN).original.accuracy
    measure_again(RUN, "final", judged_file(RUN))
    relabel(RUN, precision="float32", dialect="float")
    assert report_of(RUN).final.accuracy == before, "on clean data nothing is broken"

    found = audit(capsys, ExitCode.LIMIT_MISSED, "corruption_drop=0.02", "class_drop=0.2", "disparity=0.2")
    results = {each["name"]: each for each in found["limits"]}
    assert results["corruption_drop"]["status"] == "fail"
    assert results["corruption_drop"]["note"] == "corruption 'brightness 5', the worst of 21; 497 test samples"
    assert [results[name]["status"] for name in ("class_drop", "disparity")] == ["pass", "pass"]
    lost = {each["name"]: each["drop"]["value"] for each in found["corruptions"]}
    assert len(lost) == 3 * len(CORRUPTIONS)
    assert lost["brightness 5"] > 0.3
    assert {name for name, value in lost.items() if value != 0} <= {"brightness 3", "brightness 5"}
    assert all(each["drop"]["value"] == 0 for each in found["groups"])

    assert main(["audit", str(RUN), "--limit", "corruption_drop=0.02"]) == ExitCode.LIMIT_MISSED
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert lines[-1] == "AUDIT: fail - 1 of 1 limits missed (corruption_drop)"
    html = (RUN / "report.html").read_text()
    assert "Audit: what the mean hides" in html and 'scope="row">brightness 5</th>' in html


def test_the_same_model_has_lost_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ORIGINAL, judged_file(RUN))
    measure_again(RUN, "final", judged_file(RUN))
    relabel(RUN, precision="float32", dialect="float")
    found = audit(capsys, ExitCode.PASS, "corruption_drop=0.01", "class_drop=0.15", "disparity=0.15")
    assert [each["status"] for each in found["limits"]] == ["pass"] * 3
    assert {each["measured"] for each in found["limits"]} == {0.0}
    assert {each["drop"]["value"] for each in found["corruptions"]} == {0.0}
    flips, maps, (gap,) = found["perturbation"], found["attribution"], found["disparities"]
    assert flips["more"]["value"] == 0 and flips["original"] == flips["final"] < 0.1
    assert maps["correlation"]["value"] == pytest.approx(1) and maps["overlap"]["value"] == 1
    assert gap["growth"]["value"] == 0 and gap["original"] == gap["final"] > 0
    assert found["not_measured"] == {}

    first = measurements()
    assert audit(capsys, ExitCode.PASS)["limits"] == [], "no limit of the recipe's is on these"
    assert measurements() == first, "nothing is measured twice"
    shutil.rmtree(RUN / "measurements/corruption-contrast")  # as an interrupted audit leaves it
    assert audit(capsys, ExitCode.UNPROVEN, "corruption_drop=0.001")["corruptions"] == found["corruptions"]
    again = measurements()
    assert {name for name in first if again[name] != first[name]} == {"corruption-contrast"}


def test_a_compressed_model_and_the_limits_of_its_recipe(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`compress` measures what a limit asks for, once, and says it in the report; `audit` adds the rest."""
    wide = ["--set", "limits.corruption_drop=0.9", "--set", "limits.disparity=0.9"]
    assert main(["compress", "recipe.toml", "--json", *wide]) == ExitCode.PASS
    report = json.loads(capsys.readouterr().out)
    limits = {each["name"]: each for each in report["limits"]}
    assert limits["corruption_drop"]["note"].endswith("the worst of 21; 497 test samples")
    assert limits["disparity"]["note"].startswith("of 10 classes: best '")
    assert {each["kind"] for each in report["groups"]} == {"class"}
    kept = json.loads((RUN / "audit.json").read_text())
    assert set(kept["not_measured"]) == {"perturbation", "attribution"} and kept["limits"] == report["limits"][1:3]
    html = (RUN / "report.html").read_text()
    assert (
        "small noise: not measured: not asked for; `edgesmith audit` measures it" in html.replace("&#39;", "'").lower()
    )
    worst = max(each["drop"]["value"] for each in kept["corruptions"])
    assert limits["corruption_drop"]["measured"] == worst

    first = measurements()
    whole = audit(capsys, ExitCode.PASS)
    assert whole["corruptions"] == kept["corruptions"] and whole["attribution"]["features"] == 64
    assert {name: again for name, again in measurements().items() if name in first} == first
    assert main(["gate", str(RUN), "--json"]) == ExitCode.PASS
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    for name in ("corruption_drop", "disparity"):
        assert [checks[name][key] for key in ("measured", "low", "high")] == [
            limits[name][key] for key in ("measured", "low", "high")
        ]

    tight = ["--set", "limits.corruption_drop=-0.9"]
    assert main(["compress", "recipe.toml", "--json", *tight]) == ExitCode.LIMIT_MISSED
    capsys.readouterr()
    after = json.loads((RUN / "audit.json").read_text())
    assert after["perturbation"] == whole["perturbation"], "what was found of the same files is kept"
    assert after["limits"][0]["status"] == "fail"


def test_what_cannot_be_audited(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", str(RUN), "--limit", "corruptoin_drop=0.1"])
    assert (
        "'corruptoin_drop=0.1': write it as NAME=VALUE, NAME one of class_drop, slice_drop, corruption_drop, disparity: "
        "corruption_drop=0.02"
    ) in capsys.readouterr().err
    assert main(["audit", "nowhere"]) == ExitCode.USAGE
    assert "nowhere: not a finished run (no report.json)" in capsys.readouterr().err
    again = "run `edgesmith compress` into runs/small again"
    whole = judged_file(RUN).read_bytes()
    judged_file(RUN).write_bytes(whole + b"\0")
    path = str(judged_file(RUN))
    assert refusal(capsys) == f"ArtifactError: {path}: not the file that was judged; {again}"
    judged_file(RUN).write_bytes(whole)
    ORIGINAL.rename("elsewhere")
    assert refusal(capsys) == f"ArtifactError: {ORIGINAL}: missing; {again}"
    Path("elsewhere").rename(ORIGINAL)
    text = Path("task.py").read_text()
    Path("task.py").write_text(text.replace("images[start:stop]", "images[start:stop] * np.float32(0.5)"))
    assert refusal(capsys) == (
        f"RunDirectoryError: runs/small: the task's code or data have changed since this run; {again}"
    )
    (RUN / "predictions.npz").unlink()
    assert refusal(capsys) == f"ArtifactError: runs/small: no predictions.npz; {again}"
    assert not (RUN / "audit.json").exists() and np.isfinite(report_of(RUN).final.accuracy)
