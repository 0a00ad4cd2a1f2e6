"""Starting points other than a torch model with labels: an ONNX file, a student of another architecture."""

import json
from pathlib import Path
from typing import Any

import pytest

import edgesmith
from edgesmith.cli import main
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.run_contenders import contenders
from edgesmith.compressor.stage import Context
from edgesmith.compressor.task_file import load_task
from edgesmith.core.errors import ContractError, ExitCode
from tests.quick import BRIEF


def compress(*options: str) -> dict[str, Any]:
    assert main(["compress", "recipe.toml", *BRIEF, *options]) == ExitCode.PASS
    report: dict[str, Any] = json.loads(next(Path("runs").glob("*/report.json")).read_text())
    return report


def test_an_onnx_file_is_quantized(finished: Path) -> None:
    """The exported original of a finished run, taken as a model of its own: no torch model is asked for or benched."""
    Path("runs/small/measurements/00-original/model.onnx").rename("model.onnx")
    Path("runs").rename("old")
    text = Path("task.py").read_text()
    Path("task.py").write_text(text.replace("model=Net,\n        load_weights=load,", 'model="model.onnx",'))
    recipe = '[[stages]]\nuse = "quantize"\nsamples = 128\n[limits]\ndrop = 0.05\n'
    Path("recipe.toml").write_text('task = "task.py"\ntargets = ["onnxruntime-cpu", "tensorrt"]\n' + recipe)
    report = compress()
    assert [stage["name"] for stage in report["stages"]] == ["original", "quantize"]
    assert report["artifacts"][1]["precision"] == "int8"  # on this CPU the fastest form may be float
    assert report["original"]["accuracy"] > 0.8
    found, feeds = contenders(Path("runs/small"))
    assert [one.label.split(",")[0] for one in found] == ["ONNX Runtime FP32", "final", "tensorrt"]
    assert list(feeds) == [1]


def test_a_student_of_another_architecture(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`task.models` names a student; it takes the pruned network's place and is pruned and saved like any other."""
    Path("runs").rename("old")
    text = Path("task.py").read_text()
    Path("task.py").write_text(
        text.replace(
            "        model=Net,",
            '        models={"mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))},\n'
            "        model=Net,",
        )
    )
    Path("recipe.toml").write_text(
        'task = "task.py"\n[[stages]]\nuse = "distill"\nstudent = "mlp"\nepochs = 15\nlearning_rate = 5e-3\n'
        '[[stages]]\nuse = "prune"\nchannel_ratio = 0.75\n[[stages]]\nuse = "export"\n[limits]\nmacs_ratio = 0.1\n'
    )
    report = compress()
    student, pruned = report["stages"][1], report["stages"][2]
    assert student["accuracy"] > 0.8
    assert student["macs"] == 64 * 48 + 48 * 10
    assert pruned["macs"] == 64 * 32 + 32 * 10  # 36 of 48 channels, at the nearest multiple of 8 below


def test_a_task_object_is_as_good_as_its_file(finished: Path) -> None:
    """The same task handed over in Python finds everything the command line has finished."""
    times = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("done.json")}
    report = edgesmith.compress(load_task("task.py", finished), "recipe.toml", out="runs/small")
    assert report.verdict == "pass"
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("done.json")} == times


def test_a_stage_that_changes_its_input_is_found_out(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Prune, value: Candidate, context: Context) -> Candidate:
        next(iter(value.weights.values())).zero_()
        return value

    monkeypatch.setattr(Prune, "run", careless)
    with pytest.raises(
        ContractError, match=r"stages\[0\] 'prune': prune changed its input; a stage must return a new value"
    ):
        edgesmith.compress(None, "recipe.toml", overrides=["prune.macs_ratio=0.5"], out="runs/small")
