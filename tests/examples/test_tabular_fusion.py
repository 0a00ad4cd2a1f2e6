"""A linear regression and a tree as one file, through the command line to the verdict."""

import json
from pathlib import Path

import pytest

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from edgesmith.exporters.graph import onnx_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "tabular_fusion"


def test_a_linear_regression_and_a_tree_are_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    keys = ["--set", "measure.seconds=0.1", "--set", "measure.batch_sizes=[1]"]
    assert main(["compress", str(EXAMPLE / "fuse.toml"), "--out", str(out), *keys]) == ExitCode.PASS
    report = json.loads((out / "report.json").read_text())
    original, fused = report["stages"]
    assert fused["accuracy"] < original["accuracy"]  # the mean absolute error, on validation
    first, second, third = fused["notes"]
    assert first.startswith(
        f"mae on validation: original {original['accuracy']:.4f}, tree 48.4015; fused out of fold (5 "
    )
    assert second.startswith("weights: original 0.7")
    assert "(standard error " in second
    assert third.startswith("fused beside the best member, original: gain ")
    assert "on test: the test data agree" in third
    assert report["final"]["metrics"]["mae"]["value"] < report["original"]["metrics"]["mae"]["value"]
    operators = {node.op_type for node in onnx_file.load(out / "artifacts/onnxruntime-cpu/model.onnx").graph.node}
    assert {"LinearRegressor", "TreeEnsembleRegressor"} <= operators
