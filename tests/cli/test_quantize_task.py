"""`edgesmith quantize` with a task for its data: whatever the file is worth, it is the task's own metric that says so."""

import json
import os
from pathlib import Path

import pytest

from edgesmith.cli import main


def test_a_task_judges_by_its_own_metric(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = "runs/small/measurements/00-original/model.onnx"
    code = main(["quantize", original, "--data", "task.py", "--out", "q.onnx", "--seconds", "0.5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "accuracy" and found["quality"]["original"] > 0.8
    assert (code, os.path.exists("q.onnx")) in ((0, True), (3, False))  # so small a network may be no faster in INT8
    assert found["runs"] == {"calibration": 16, "validation": 10, "test": 16}


def test_a_finished_run_tells_the_ranges_of_its_files(finished: Path) -> None:
    artifacts = json.loads(Path("runs/small/report.json").read_text())["artifacts"]
    for artifact in artifacts:
        assert {each["rule"] for each in artifact["ranges"]} == {"mse"}
        assert artifact["ranges"][0]["tensor"] == "image" and artifact["ranges"][0]["moved"] < 0.1
    assert "ranges of " in Path("runs/small/report.html").read_text()
