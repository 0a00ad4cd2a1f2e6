"""`edgesmith bench`: files, or a finished run, side by side."""

import functools
import json
from pathlib import Path

import pytest
import torch._inductor.config

from edgesmith.benches.timing import side_by_side
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode

ORIGINAL = "runs/small/measurements/00-original/model.onnx"
FINAL = "runs/small/artifacts/onnxruntime-cpu/model.onnx"


def test_two_files(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", ORIGINAL, FINAL, "--batch", "8", "--seconds", "0.5", "--concurrency", "2"]) == ExitCode.PASS
    out = capsys.readouterr().out
    assert out.startswith("Side by side, 1 thread(s)")
    for text in (
        f"\n1: {ORIGINAL}\n2: {FINAL}\n",
        "batch 8",
        "baseline",
        "peak memory",
        "first call",
        "2 at once",
        "noise floor",
    ):
        assert text in out


def test_as_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", ORIGINAL, ORIGINAL, "--batch", "1,4", "--seconds", "0.5", "--json"]) == ExitCode.PASS
    result = json.loads(capsys.readouterr().out)
    assert set(result["noise_floor"]) == {"1", "4"}
    first, second = result["rows"]
    assert [timing["batch"] for timing in second["timings"]] == [1, 4]
    assert first["file_bytes"] == Path(ORIGINAL).stat().st_size
    for timing in second["timings"]:  # a file against itself
        assert timing["speedup"]["low"] <= 1.0 <= timing["speedup"]["high"]


@pytest.mark.slow
def test_a_run(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler, which is said in its row; tests/compressor/test_torch_run.py compiles.

    What is claimed of the times holds for any number of processes, and each of torch's takes seconds to start.
    """
    monkeypatch.chdir("/")  # the task is found from where the run is
    monkeypatch.setattr(side_by_side, "compare", functools.partial(side_by_side.compare, confidence=0.75))
    monkeypatch.setattr(side_by_side, "measure", functools.partial(side_by_side.measure, restarts=2))
    command = ["bench", f"{finished}/runs/small", "--batch", "4", "--seconds", "0.5", "--json"]
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert main(command) == ExitCode.PASS
    result = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in result["rows"]}
    final = next(label for label in rows if label.startswith("final, "))
    tensorrt = next(label for label in rows if label.startswith("tensorrt, "))
    assert list(rows) == ["torch eager", "torch.compile", "ONNX Runtime FP32", final, tensorrt]
    assert rows["torch.compile"]["reason"] == (
        "torch.compile needs a C++ compiler; install g++ or clang, or name one with CXX"
    )
    assert rows["torch.compile"]["timings"] == []
    assert rows[tensorrt]["reason"].startswith("no CUDA device")
    eager, fp32 = rows["torch eager"], rows["ONNX Runtime FP32"]
    # torch's own libraries count, and are far more than what ONNX Runtime adds for this network.
    assert eager["peak_memory"]["low"] > 50e6 > fp32["peak_memory"]["high"]
    assert fp32["timings"][0]["speedup"]["value"] > 1.0
    assert eager["file_bytes"] == (finished / "runs/small/stages/00-original/model.safetensors").stat().st_size


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


def test_runs_that_cannot_be_compared(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*arguments: str) -> str:
        assert main(["bench", *arguments]) == ExitCode.USAGE
        return capsys.readouterr().err

    assert refusal("runs/small", ORIGINAL) == (
        "UsageError: bench takes one run directory alone, without --shape, or two or more ONNX files\n"
    )
    assert refusal("runs") == (
        "RunDirectoryError: runs: not a finished run (no readable report.json); give the directory that "
        "`edgesmith compress` wrote, or two or more ONNX files\n"
    )
    Path("task.py").write_text(Path("task.py").read_text() + "\n# changed\n")
    assert refusal("runs/small") == (
        "RunDirectoryError: runs/small: the task's code or data have changed since this run; "
        "run `edgesmith compress` into runs/small again\n"
    )
    Path("task.py").unlink()
    assert refusal("runs/small").endswith("task.py; run `edgesmith compress` into runs/small again\n")
