"""`edgesmith build`, and the engine that a recipe with `[build]` leaves beside its file."""

import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgesmith.cli import main
from edgesmith.compressor import recipe as recipes

STATEMENT = (
    "it proves that NVIDIA's parser accepts the graph and that it builds; "
    "it is not an engine for a Jetson and it proves no speed"
)
ARTIFACT = Path("runs/small/artifacts/tensorrt")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One Relu on `x` (n, time, 4), in the current folder."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "time", 4]) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return Path("m.onnx")


def test_prints_what_was_built_and_what_it_proves(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "m.onnx", "--shape", "x=1x2x4:2x4x4:8x8x4", "--workspace-mb", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("m.engine: ") and " by tensorrt-rtx " in lines[0]
    assert lines[1] == "  takes: x 1x2x4 to 8x8x4, fastest at 2x4x4"
    assert lines[2] == f"  tensorrt-rtx: {STATEMENT}"
    assert lines[3] == (
        "  on the device, beside m.onnx: trtexec --onnx=m.onnx --saveEngine=m.engine --minShapes=x:1x2x4 "
        "--optShapes=x:2x4x4 --maxShapes=x:8x8x4 --memPoolSize=workspace:32 --stronglyTyped"
    )
    assert sorted(os.listdir()) == ["m.engine", "m.engine.json", "m.onnx"]


def test_json_is_what_stands_beside_the_engine(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "x=1x2x4:2x4x4:8x8x4", "--fp16", "--compute-capability", "8.6,8.9", "--out", "o/a.engine"]
    assert main(["build", "m.onnx", *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads(Path("o/a.engine.json").read_text())
    assert printed.pop("engine") == "o/a.engine"
    assert {**stored, "schema": None} == {**printed, "schema": None}
    assert (printed["precision"], printed["compute_capabilities"]) == ("float16", ["8.6", "8.9"])
    assert sorted(os.listdir("o")) == ["a.engine", "a.engine.json", "m.float16.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "UsageError: input 'x' (n, time, 4): axis 1 'time' is dynamic and has no sizes; "),
        (("--tool", "tensorrt"), 2, 'UsageError: tensorrt is not installed: pip install "edgesmith[tensorrt]"\n'),
        (("--batch", "1,2"), 2, "RecipeError: build.batch"),
        (
            ("--compute-capability", "sm86"),
            2,
            "RecipeError: build.compute_capabilities[0]: string should match pattern",
        ),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    code: int,
    text: str,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    assert main(["build", "m.onnx", *arguments]) == code
    assert text in capsys.readouterr().err
    assert os.listdir() == ["m.onnx"]


@pytest.mark.parametrize("text", ["1x2", "x=1x2:2x2", "x=1x2:2x0:3x2"])
def test_shapes_are_three(text: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "m.onnx", "--shape", text])
    assert "--shape: " in capsys.readouterr().err


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / "small" / "report.json").read_text())
    return found


def test_a_recipe_builds_beside_its_file(finished: Path) -> None:
    other, artifact = report(finished)["artifacts"]
    assert (other["engine"], other["device_command"]) == (None, "")
    engine = artifact["engine"]
    assert (engine["path"], engine["tool"]) == ("artifacts/tensorrt/model.engine", "tensorrt-rtx")
    assert engine["proves"] == STATEMENT and engine["weights_bytes"] > 0
    assert engine["file_bytes"] == (ARTIFACT / "model.engine").stat().st_size
    beside = json.loads((ARTIFACT / "model.engine.json").read_text())
    assert beside["source_digest"] == artifact["digest"]
    assert beside["profiles"]["image"]["max"][0] == 8
    assert artifact["device_command"] == beside["device_command"]
    assert artifact["device_note"] == "TensorRT 10.0 to 10.11 needs --int8 in place of --stronglyTyped"
    printed = (finished / "stdout.txt").read_text()
    assert artifact["device_command"] in printed, "in one piece: it is copied"
    assert STATEMENT in " ".join(printed.split())
    html = (finished / "runs" / "small" / "report.html").read_text()
    assert artifact["device_command"] in html and "not an engine for a Jetson" in html


def test_a_finished_engine_is_kept_and_a_changed_build_makes_another(finished: Path) -> None:
    before = (ARTIFACT / "model.engine").stat()
    assert main(["compress", "recipe.toml", "--json"]) == 0
    assert (ARTIFACT / "model.engine").stat().st_mtime_ns == before.st_mtime_ns
    assert main(["compress", "recipe.toml", "--json", "--set", "build.precision=float16"]) == 0
    assert json.loads((ARTIFACT / "model.engine.json").read_text())["precision"] == "float16"
    assert (ARTIFACT / "model.float16.onnx").is_file()
    (_, artifact) = report(finished)["artifacts"]
    assert "--onnx=model.float16.onnx" in artifact["device_command"]


def test_a_tool_that_is_not_here_stops_before_any_work(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    assert main(["compress", "recipe.toml", "--set", "build.tool=tensorrt"]) == 2
    text = """RecipeError: build.tool 'tensorrt': tensorrt is not installed: pip install "edgesmith[tensorrt]"\n"""
    assert capsys.readouterr().err == text
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("build.bach=[1, 2, 3]", "build: unknown key 'bach'; did you mean 'batch'? known: tool, batch, shapes, "),
        ("build.batch=[1, 2]", "build.batch"),
        ('build.shapes={ imag = [[1], [1], [1]] }', "build.shapes: no input 'imag'; did you mean 'image'?; inputs: image"),
        ("build.workspace_mb=0", "build.workspace_mb: input should be greater than or equal to 1, got 0"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_meant(setting: str, text: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "recipe.toml", "--set", setting]) == 2
    assert text in capsys.readouterr().err
    assert not Path("runs").exists()


def test_build_needs_its_target(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("recipe.toml")
    recipe.write_text(recipe.read_text().replace('"onnxruntime-cpu", "tensorrt"', '"onnxruntime-cpu"'))
    assert main(["compress", "recipe.toml"]) == 2
    expected = "RecipeError: recipe.toml: build: engines are built for the target 'tensorrt'; add it to targets\n"
    assert capsys.readouterr().err == expected


def test_without_build_the_report_still_says_how(finished: Path) -> None:
    recipe = Path("recipe.toml")
    recipe.write_text(recipe.read_text().replace("[build]\nbatch = [1, 4, 8]\n", ""))
    assert main(["compress", "recipe.toml", "--json"]) == 0
    (_, artifact) = report(finished)["artifacts"]
    assert artifact["engine"] is None
    assert artifact["device_command"].startswith(
        "trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=image:1x"
    )
    assert sorted(os.listdir(ARTIFACT)) == ["done.json", "model.onnx"]


def test_a_timing_cache_is_found_from_the_run_directory(project: Path) -> None:
    recipe = Path("recipe.toml")
    recipe.write_text(recipe.read_text().replace("[build]\n", '[build]\ntiming_cache = "t.cache"\n'))
    moved = recipes.load(recipe).seen_from(Path("runs/small").resolve())
    assert moved.build is not None and moved.build.timing_cache == "../../t.cache"
