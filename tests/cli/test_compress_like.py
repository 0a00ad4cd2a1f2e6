"""`edgesmith compress --like RUN`: what a run chose by the clock stands in the next one, and nothing else does."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.cli import main
from edgesmith.compressor import artifacts, measuring
from edgesmith.compressor.pruning.prune_to_latency import Planner
from edgesmith.core.errors import ExitCode
from tests.quick import BRIEF

RUN, AGAIN = Path("runs/small"), Path("runs/again")
WEIGHTS_FROM_A_FILE = """
trained = load


def load(model):
    trained(model)
    model.head.weight.data *= float(np.load("scale.npy"))
"""
PRUNED_TO_LATENCY = """
task = "task.py"
targets = ["onnxruntime-cpu"]

[[stages]]
use = "prune"
latency_ratio = 0.8

[[stages]]
use = "export"

[measure]
batch_sizes = [32]
seconds = 0.05

[limits]
file_ratio = 1.5
"""


def compress(*options: str) -> dict[str, Any]:
    assert main(["compress", "recipe.toml", "--out", str(AGAIN), "--like", str(RUN), *options]) == ExitCode.PASS
    report: dict[str, Any] = json.loads((AGAIN / "report.json").read_text())
    return report


def edit_environment(**entries: str) -> None:
    lock = json.loads((RUN / "edgesmith.lock").read_text())
    (RUN / "edgesmith.lock").write_text(json.dumps(lock | {"environment": lock["environment"] | entries}))


def test_the_same_work_comes_to_the_same_files_without_a_search(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artifacts, "search", lambda *_: pytest.fail("searched"))
    measured, measure = [], measuring.measure_costs
    monkeypatch.setattr(measuring, "measure_costs", lambda *given: measured.append(given) or measure(*given))
    report, before = compress(), json.loads((RUN / "report.json").read_text())
    assert [each["digest"] for each in report["artifacts"]] == [each["digest"] for each in before["artifacts"]]
    for now, then in zip(report["artifacts"], before["artifacts"], strict=True):
        assert (now["layers"], now["tried"]) == (then["layers"], then["tried"])
    assert report["artifacts"][0]["reason"] == f"as an earlier run chose it: {before['artifacts'][0]['reason']}"
    said = "like runs/small: chosen as there, not searched again: artifacts/onnxruntime-cpu, artifacts/tensorrt"
    assert said in capsys.readouterr().err.splitlines()
    assert (AGAIN / "stages/02-distill/done.json").read_text() != (RUN / "stages/02-distill/done.json").read_text()
    assert len(measured) == 1, "what is claimed is measured"
    assert compress()["artifacts"] == report["artifacts"]
    assert "nothing was taken over: all was finished here before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "recipe", "said"),
    [
        ({"onnxruntime": "1.0", "cpu": "another"}, [], "nothing was taken over, for it ran with other cpu, onnxruntime"),
        ({}, ["--set", "distill.epochs=1"], "nothing was taken over: all was finished here before, or no choice is there, "
                                            "whole and unchanged, of the same task, recipe and weights"),
    ],
)  # fmt: skip
def test_of_other_work_nothing_is_taken_over(
    environment: dict[str, str], recipe: list[str], said: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_environment(**environment)
    report = compress(*recipe, "--set", "limits.drop=1.0", *BRIEF)
    assert f"like runs/small: {said}" in capsys.readouterr().err
    reason = report["artifacts"][0][
        "reason"
    ]  # two dialects, float, and a form with layers given back where there is one
    assert reason.startswith(f"the fastest of {3 + bool(re.search(r' with [0-9]+ layers? in float ', reason))} forms ")


def test_a_form_that_loses_too_much_now_is_searched_for_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artifacts, "_again", lambda *_: None)
    compress()
    assert "like runs/small: nothing was taken over" in capsys.readouterr().err


def test_a_stage_that_measures_is_taken_over_whole_for_the_same_weights_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pruned to a latency: measured again it would come to other widths."""
    (project / "recipe.toml").write_text(PRUNED_TO_LATENCY)
    (project / "task.py").write_text((project / "task.py").read_text() + WEIGHTS_FROM_A_FILE)
    np.save("scale.npy", np.float32(1))
    monkeypatch.setattr(Planner, "edits", lambda planner, *_: (planner._groups[0].edit([planned.pop()]),))
    planned = [1, 2]
    assert main(["compress", "recipe.toml", "--out", str(RUN)]) == ExitCode.PASS
    report, before = compress(), json.loads((RUN / "report.json").read_text())
    assert [each["digest"] for each in report["stages"]] == [each["digest"] for each in before["stages"]]
    assert (report["stages"][1]["notes"], planned) == (before["stages"][1]["notes"], [1])
    np.save("scale.npy", np.float32(1.001))  # no key says what a checkpoint holds
    shutil.rmtree(AGAIN)
    capsys.readouterr()
    report = compress()
    assert planned == [] and report["stages"][1]["digest"] != before["stages"][1]["digest"]
    assert "nothing was taken over" in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "recipe.toml", "--like", "nowhere"]) == ExitCode.USAGE
    assert capsys.readouterr().err.strip() == (
        "RunDirectoryError: nowhere/edgesmith.lock: no lock that can be read; `edgesmith compress` writes one"
    )
    assert not Path("runs").exists()
