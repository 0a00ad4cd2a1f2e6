"""`edgesmith bench`: paired latency of files."""

import json
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode

ORIGINAL = "runs/small/measurements/00-original/model.onnx"
FINAL = "runs/small/artifacts/onnxruntime-cpu/model.onnx"


def test_two_files(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", ORIGINAL, FINAL, "--batch", "8", "--seconds", "1"]) == ExitCode.PASS
    out = capsys.readouterr().out
    assert out.startswith(f"1: {ORIGINAL}\n2: {FINAL}\n")
    assert "Batch 8, 1 thread(s)" in out
    assert "baseline" in out
    assert "noise floor" in out


def test_as_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", ORIGINAL, ORIGINAL, "--batch", "1,4", "--seconds", "1", "--json"]) == ExitCode.PASS
    results = json.loads(capsys.readouterr().out)
    assert [result["batch"] for result in results] == [1, 4]
    for result in results:  # a file against itself
        assert result["speedup"][0]["low"] <= 1.0 <= result["speedup"][0]["high"]


def test_files_with_other_inputs_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model = onnx.load(ORIGINAL)
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "picture"
    onnx.save(model, "other.onnx")
    assert main(["bench", ORIGINAL, "other.onnx"]) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        f"ArtifactError: other.onnx: has no input 'image', which {ORIGINAL} has; only alike models can be paired\n"
    )
