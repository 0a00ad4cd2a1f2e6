"""`edgesmith lint`: what it prints, what it writes, and its exit code."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.cli import main
from edgesmith.exporters.targets import onnxruntime_cpu
from tests.exporters.linting.lint_graphs import layer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with five files."""
    monkeypatch.chdir(tmp_path)
    onnx.save(layer(), "legal.onnx")
    onnx.save(layer("ConvTranspose", axis=None, group=2), "risky.onnx")
    onnx.save(layer(zero=np.uint8(128), bias="int32"), "fixable.onnx")
    onnx.save(layer(zero=np.uint8(0), bias="int32"), "clips.onnx")
    Path("none.onnx").write_text("nothing of the kind")
    return tmp_path


FILES = ["clips.onnx", "fixable.onnx", "legal.onnx", "none.onnx", "risky.onnx"]
RISKY = (
    "ConvTranspose 'n_m': a transposed convolution of INT8 weights in groups, which TensorRT before 10.9 cannot build; "
    "keep its weights in float, or use one group [grouped-transposed]"
)


def said(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> list[str]:
    assert main(["lint", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_a_clean_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, 0, "legal.onnx", "--target", "tensorrt") == ["legal.onnx, tensorrt: nothing found"]
    assert sorted(os.listdir()) == FILES


def test_what_is_risky_is_printed_and_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, 0, "risky.onnx", "--target", "tensorrt") == [
        "risky.onnx, tensorrt: 1 risky",
        f"  risky: {RISKY}",
    ]


def test_refusals_are_exit_code_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, 3, "fixable.onnx", "--target", "tensorrt")
    text = (
        "works on UINT8 with zero point 128; INT8 with zero point 0 holds the same numbers, as --fix writes [unsigned]"
    )
    assert lines == [
        "fixable.onnx, tensorrt: 5 refused",
        f"  refused: QuantizeLinear 'n_q': {text}",
        f"  refused: DequantizeLinear 'n_d': {text}",
        "  refused: DequantizeLinear 'n_bd': works on an INT32 bias; keep the bias in float, as --fix does [int32-bias]",
        f"  refused: QuantizeLinear 'n_yq': {text}",
        f"  refused: DequantizeLinear 'n_y': {text}",
        "5 of them can be fixed: --fix",
    ]
    assert sorted(os.listdir()) == FILES


def test_fix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, 0, "fixable.onnx", "--target", "tensorrt", "--fix")
    assert lines[6:9] == [
        "fixable.fixed.onnx:",
        "  2 tensor(s) in UINT8 around 128 written as INT8 around 0: the same numbers",
        "  1 INT32 bias(es) written in float: the same numbers",
    ]
    assert lines[9].startswith("  its outputs in ONNX Runtime are at most 0 from the original's ('y', values up to ")
    assert lines[10:] == ["  nothing found"]
    assert sorted({*os.listdir()} - {*FILES}) == ["fixable.fixed.onnx"]
    assert said(capsys, 0, "fixable.fixed.onnx", "--target", "tensorrt") == [
        "fixable.fixed.onnx, tensorrt: nothing found"
    ]


def test_what_is_left_is_said_and_is_exit_code_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, 3, "clips.onnx", "--target", "tensorrt", "--fix", "--out", "o/n.onnx")
    start = lines.index("o/n.onnx:")
    assert lines[start + 1] == "  1 INT32 bias(es) written in float: the same numbers"
    assert lines[start + 3] == "  4 refused"
    assert lines[start + 4].startswith(
        "  refused: QuantizeLinear 'n_q': works on UINT8 with zero point 0: builds with a warning, and clips at 127; "
    )
    assert len(lines) == start + 8 and os.listdir("o") == ["n.onnx"]
    lines = said(capsys, 3, "o/n.onnx", "--target", "tensorrt", "--fix")
    assert lines[-1] == "nothing could be fixed; nothing was written" and os.listdir("o") == ["n.onnx"]


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(capsys, 0, "risky.onnx", "--target", "tensorrt", "--json")
    found = json.loads(line)
    assert (found["path"], found["target"], found["out"], found["difference"]) == ("risky.onnx", "tensorrt", None, None)
    assert found["findings"] == [
        {
            "rule": "grouped-transposed", "node": "n_m", "operator": "ConvTranspose", "severity": "risky", "fixable": False,
            "problem": "a transposed convolution of INT8 weights in groups, which TensorRT before 10.9 cannot build",
            "remedy": "keep its weights in float, or use one group", "text": RISKY,
        }
    ]  # fmt: skip
    (line,) = said(capsys, 0, "fixable.onnx", "--target", "tensorrt", "--fix", "--json")
    found = json.loads(line)
    assert (found["out"], found["left"], found["not_compared"]) == ("fixable.fixed.onnx", [], "")
    assert (found["difference"]["output"], found["difference"]["largest"]) == ("y", 0.0)


def test_onnx_runtimes_own_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cpu, "this_cpu", lambda: "x86-vnni")  # without it 8-bit weights are risky too
    onnx.save(layer(zero=np.uint8(128), opset=12), "old.onnx")
    lines = said(capsys, 3, "old.onnx", "--target", "onnxruntime-cpu")
    assert lines == [
        "old.onnx, onnxruntime-cpu: 1 refused",
        "  refused: DequantizeLinear 'n_k': one scale for each channel in opset 12, which needs 13; raise the opset, as --fix "
        "does [opset]",
        "1 of them can be fixed: --fix",
    ]
    lines = said(capsys, 0, "old.onnx", "--target", "onnxruntime-cpu", "--fix")
    assert lines[3] == "  opset raised from 12 to 17"
    assert lines[4].startswith("  not compared with the original: ONNX Runtime cannot run the original: ")
    assert lines[5:] == ["  nothing found"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("legal.onnx", "--target", "tensorflow"), "RecipeError: --target: unknown 'tensorflow'; did you mean 'tensorrt'? known: onnxruntime-arm, onnxruntime-cpu, onnxruntime-cuda, onnxruntime-openvino, onnxruntime-tensorrt, onnxruntime-x86, openvino, tensorrt"),
        (("legal.onnx", "--target", "tensorrt", "--out", "x.onnx"), "UsageError: --out x.onnx: nothing is written without --fix"),
        (("none.onnx", "--target", "tensorrt"), "ArtifactError: none.onnx: not an ONNX file, or truncated; export it again"),
        (("gone.onnx", "--target", "onnxruntime-cpu"), "ArtifactError: gone.onnx: cannot read the ONNX file: No such file or directory"),
        (("fixable.onnx", "--target", "tensorrt", "--fix", "--out", "fixable.onnx"), "UsageError: --out fixable.onnx: is the file itself, which stays as it is; name another"),
    ],
)  # fmt: skip
def test_wrong_use(arguments: tuple[str, ...], text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", *arguments]) == 2
    assert capsys.readouterr().err.strip() == text
    assert sorted(os.listdir()) == FILES


def test_a_target_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["lint", "legal.onnx"])
    assert raised.value.code == 2
    assert "the following arguments are required: --target" in capsys.readouterr().err
