"""`edgesmith quantize`: a file that is close and faster, or none and the reason."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.benches.timing import latency
from edgesmith.benches.timing.latency import Latency, PairedLatency
from edgesmith.calibration.calibrators import CALIBRATORS
from edgesmith.cli import main
from edgesmith.compressor.commands.argument_types import names
from edgesmith.compressor.int8 import int8_search
from edgesmith.compressor.int8.quantize_file import Options, quantize_file
from edgesmith.core.errors import UsageError
from edgesmith.core.values import Interval
from edgesmith.exporters.sessions import taps
from tests.exporters import transformer

WIDTH = 768
Model = Callable[..., Path]


def layers(*widths: int, outliers: bool = False) -> onnx.ModelProto:
    """A perceptron on `x` (n, widths[0]), random weights of the usual size; opset 11, as old exporters write.

    With `outliers` the second layer's input has one column a thousand times as large as the others, which the layer
    weighs by zero: per tensor nothing is left of the others in INT8.
    """
    rng, nodes, tensors = np.random.default_rng(0), [], []
    for index, (rows, columns) in enumerate(itertools.pairwise(widths)):
        weight = (rng.standard_normal((rows, columns)) * (2 / rows) ** 0.5).astype(np.float32)
        if outliers and index == 0:
            weight[:, 0] *= 1000
        if outliers and index == 1:
            weight[0] = 0
        tensors.append(numpy_helper.from_array(weight, f"w{index}"))
        last = index == len(widths) - 2
        nodes.append(
            helper.make_node(
                "Gemm",
                [f"r{index - 1}" if index else "x", f"w{index}"],
                [f"h{index}" if not last else "y"],
                name=f"layer{index}",
            )
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"], name=f"relu{index}"))
    values = [("x", widths[0]), ("y", widths[-1])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in values]
    graph = helper.make_graph(nodes, "mlp", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*widths: int, labels: bool = False, count: int = 80, outliers: bool = False) -> None:
    """`m.onnx` and `data.npz`; the labels are the model's own answers, so that all of them are right."""
    onnx.save(layers(*widths, outliers=outliers), "m.onnx")
    x = np.random.default_rng(1).standard_normal((count, widths[0])).astype(np.float32)
    arrays = {"x": x}
    if labels:
        (y,) = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
        arrays["labels"] = y.argmax(1)
    np.savez("data.npz", **arrays)


def quantize(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = main(["quantize", "m.onnx", "--data", "data.npz", "--out", "q.onnx", "--seconds", "0.5", "--json", *more])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.alone
def test_wide_layers_become_a_file_that_is_close_and_faster(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(WIDTH, WIDTH, WIDTH, 10)
    code, found = quantize(capsys)
    assert (code, found["status"], found["out"]) == (0, "written", "q.onnx")
    assert found["quality"]["snr_db"] >= 20 and found["speedup"]["low"] > 1
    assert found["final_bytes"] == os.path.getsize("q.onnx") < 0.3 * found["original_bytes"]
    assert found["runs"] == {"calibration": 40, "validation": 20, "test": 20}
    with np.load("data.npz") as data:
        x = data["x"]
    both = [
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("m.onnx", "q.onnx")
    ]
    assert 10 * np.log10((both[0] ** 2).sum() / ((both[0] - both[1]) ** 2).sum()) >= 20
    assert [decision["int8"] for decision in found["decisions"]][:2] == [True, True]
    notes = {entry.key: entry.value for entry in onnx.load("q.onnx").metadata_props}
    ranges = json.loads(notes["edgesmith.calibration"])
    assert (ranges["runs"], ranges["calibrator"], len(ranges["data"])) == (40, "mse", 64)


@pytest.mark.alone
def test_only_the_layer_that_spoils_it_stays_in_float(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(WIDTH, WIDTH, WIDTH, WIDTH, 10, outliers=True)
    code, found = quantize(capsys, "--calibrator", "min-max")
    assert code == 0
    kept = {decision["node"]: decision["why"] for decision in found["decisions"] if not decision["int8"]}
    assert kept["layer1"].startswith("costs too much: ") and "layer2" not in kept
    alone = {decision["node"]: decision["alone_db"] for decision in found["decisions"]}
    assert alone["layer1"] == min(alone.values()) < 10
    assert found["quality"]["snr_db"] >= 20 and found["speedup"]["low"] > 1


def test_a_transformer_with_outliers_is_smoothed_and_no_layer_goes_back(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This is about what layers lose; how long those of so small a block take hangs on what else the machine does.
    monkeypatch.setattr(int8_search, "slower_in_int8", lambda *_: [])
    onnx.save(transformer.block(outlier=300), "m.onnx")
    np.savez("data.npz", x=np.random.default_rng(1).standard_normal((40, 7, transformer.WIDTH)).astype(np.float32))
    _, found = quantize(capsys)  # so small a block need not be faster
    assert found["notes"] == ["smoothed 0 normalizations, 4 other inputs of products"]
    assert [(decision["int8"], decision["alone_db"]) for decision in found["decisions"]] == [(True, None)] * 6
    assert found["quality"]["snr_db"] >= 20
    assert any(text.startswith("dynamic: ") for text in found["tried"])


@pytest.mark.alone
def test_with_labels_the_metric_decides(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(WIDTH, WIDTH, WIDTH, 10, labels=True, count=400)
    # At some 35 dB about one answer in a hundred changes; the time to prove that it is faster on a busy machine.
    code, found = quantize(capsys, "--max-drop", "0.06", "--seconds", "2")
    assert (code, found["metric"], found["quality"]["original"]) == (0, "accuracy", 1.0)
    assert found["quality"]["drop"]["high"] <= 0.06


def test_labels_are_held_to_the_output_that_they_fit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features stand before the scores, as encoders give them; the class is not their largest."""
    make(64, 64, 10, labels=True, count=200)
    model = onnx.load("m.onnx")
    model.graph.output.insert(0, helper.make_tensor_value_info("r0", TensorProto.FLOAT, ["n", 64]))
    onnx.save(model, "m.onnx")
    _, found = quantize(capsys, "--target", "tensorrt", "--max-drop", "0.5")
    assert (found["metric"], found["quality"]["original"]) == ("accuracy", 1.0)
    assert found["quality"]["changed"] > 0.8 and found["quality"]["unread_db"] >= 20
    assert found["notes"][0] == "the labels are held to output 'y', the one they fit best"


def test_a_narrower_output_is_not_taken_for_the_scores(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four numbers before ten scores, and labels below four: both fit."""
    make(64, 4, 10, labels=True, count=400)
    model = onnx.load("m.onnx")
    model.graph.output.insert(0, helper.make_tensor_value_info("r0", TensorProto.FLOAT, ["n", 4]))
    onnx.save(model, "m.onnx")
    with np.load("data.npz") as data:
        arrays = dict(data)
    few = arrays["labels"] < 4
    arrays = {name: array[few] for name, array in arrays.items()}
    np.savez("data.npz", **arrays)
    _, found = quantize(capsys, "--target", "tensorrt", "--max-drop", "0.5")
    assert (found["metric"], found["quality"]["original"]) == ("accuracy", 1.0)


def test_a_single_output_takes_no_run_to_choose(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    monkeypatch.setattr("edgesmith.compressor.int8.quantize_file.run", lambda *given: runs.append(given))
    make(64, 64, 10, labels=True, count=200)
    _, found = quantize(capsys, "--target", "tensorrt", "--max-drop", "0.5")
    assert not runs and found["quality"]["original"] == 1.0 and not any("labels" in each for each in found["notes"])


def test_what_is_no_faster_is_refused_and_nothing_is_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(4, 4, 3)
    code, found = quantize(capsys)
    assert (code, found["status"], found["out"], os.path.exists("q.onnx")) == (3, "refused", None, False)
    assert found["reason"].startswith(("slower than the original: ", "not proven to be faster than the original: "))


def test_what_cannot_be_kept_close_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(16, 16, 4)
    onnx.save(_only_layer_with_outliers(), "m.onnx")
    code, found = quantize(capsys, "--calibrator", "min-max")
    assert code == 3 and not os.path.exists("q.onnx")
    assert found["reason"].startswith("no INT8 form is close enough: ") and "dB, not good enough" in found["reason"]


def _only_layer_with_outliers() -> onnx.ModelProto:
    model = layers(16, 4)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0] = 0
    scale = np.ones((1, 16), np.float32)
    scale[0, 0] = 1e4
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w0"))
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "scale"], ["scaled"], name="scaling"))
    return model


@pytest.mark.alone
def test_a_limit_that_few_runs_cannot_prove(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(WIDTH, WIDTH, WIDTH, 10)
    code, found = quantize(capsys, "--max-drop", "0.02")
    assert (code, found["status"], os.path.exists("q.onnx")) == (4, "unproven", True)
    assert found["reason"].startswith("--max-drop 0.02: kept by the estimate, 0.0")


def test_a_target_that_is_not_here_gets_its_legal_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(64, 64, 10)
    code, found = quantize(capsys, "--target", "tensorrt")
    assert (code, found["status"], found["dialect"]) == (4, "unproven", "s8-symmetric")
    assert found["reason"] == "latency not measured: no CUDA device" and os.path.exists("q.onnx")


def test_what_is_quantized_already_is_recognised(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(64, 64, 10)
    assert quantize(capsys, "--target", "tensorrt")[0] == 4
    os.rename("q.onnx", "m.onnx")
    code, found = quantize(capsys)
    assert code == 2
    assert found["message"] == "m.onnx: is quantized already (s8-symmetric); give the float model it was made from"


def test_the_original_is_not_written_over(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(4, 4, 3)
    assert main(["quantize", "m.onnx", "--data", "data.npz", "--out", "./m.onnx"]) == 2
    assert capsys.readouterr().err == "UsageError: --out m.onnx: is the original itself; give another name\n"


@pytest.mark.parametrize(
    ("out", "text"),
    [
        ("data.npz", "is no name for an ONNX file; give one that ends in .onnx"),  # it would be written over
        ("folder.onnx", "is no name for an ONNX file; give one that ends in .onnx"),
        ("data.npz/q.onnx", "{folder}/data.npz is no folder; give another name"),
    ],
)
def test_a_name_that_cannot_be_written_to_is_refused_before_any_work(
    out: str, text: str, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(4, 4, 3)
    os.mkdir("folder.onnx")
    before, done = Path("data.npz").read_bytes(), passes(monkeypatch)
    assert main(["quantize", "m.onnx", "--data", "data.npz", "--out", out]) == 2
    assert capsys.readouterr().err == f"UsageError: --out {out}: {text.format(folder=project)}\n"
    assert (done, Path("data.npz").read_bytes()) == ([], before)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--max-drop", "nan", "must be a number of 0 or more, got nan"),
        ("--max-drop", "-0.1", "must be a number of 0 or more, got -0.1"),
        ("--seconds", "0", "must be a number above 0, got 0"),
        ("--seconds", "inf", "must be a number above 0, got inf"),
    ],
)
def test_numbers_that_no_search_keeps(
    option: str, value: str, text: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["quantize", "m.onnx", "--data", "data.npz", "--out", "q.onnx", option, value])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {text}\n")


def test_spaces_in_a_list_of_names(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(16, 16, 4)
    code, found = quantize(capsys, "--recover", "smooth, equalise")
    text = "--recover: unknown 'equalise'; did you mean 'equalize'? known: bias-correction, equalize, round, smooth"
    assert (code, found["message"]) == (2, text)
    assert names(" equalize ,round") == ("equalize", "round")


def test_one_hot_labels_are_refused_before_any_work(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(8, 8, 4, labels=True)
    with np.load("data.npz") as data:
        np.savez("data.npz", x=data["x"], labels=np.eye(4, dtype=np.int64)[data["labels"]])
    code, found = quantize(capsys)
    text = "data.npz: the labels are one-hot, (N, 4); give class numbers (N,), as labels.argmax(axis=1) makes them"
    assert (code, found["message"]) == (2, text)


def test_two_looks_at_the_time_share_one_error(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def undecided(files: list[Any], feeds: Any, threads: int, **settings: Any) -> list[PairedLatency]:
        if settings["confidence"] != latency.GUIDE["confidence"]:
            looked.append((settings["restarts"], settings["seconds"], settings["seed"], settings["confidence"]))
        time = Latency(p50=1.0, p90=1.0, p99=1.0, low=1.0, high=1.0)
        even = Interval(value=1.01, low=0.99, high=1.03)
        others = len(files) - 1
        times, speedup = (time,) * len(files), (even,) * others
        return [PairedLatency(batch=1, threads=1, restarts=5, latency=times, speedup=speedup, noise_floor=0.01)]

    monkeypatch.setattr(latency, "compare", undecided)
    make(16, 16, 4)
    code, found = quantize(capsys)
    assert code == 3 and found["reason"].startswith("not proven to be faster than the original: 1.01x (0.99 to 1.03)")
    assert [look[:3] for look in looked] == [(5, 0.5, 1), (15, 1.5, 2)]
    assert sum(1 - look[3] for look in looked) == pytest.approx(0.05)


@pytest.mark.parametrize("confidence", [0.99, 0.97, 1.0, 0.4, float("nan")])
def test_a_confidence_that_the_restarts_cannot_give(confidence: float, project: Path) -> None:
    """It gave one look at 0.96875 in place of 0.99, and said nothing."""
    make(16, 16, 4)
    text = f"confidence {confidence:g}: the 5 restarts of the verdict give an interval at 0.5 to 0.96875"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        quantize_file(Path("m.onnx"), Path("data.npz"), Path("q.onnx"), Options(confidence=confidence, seconds=0.1))


def test_answers_are_asked_for_and_there_are_none(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(8, 8, 1)
    code, found = quantize(capsys, "--max-drop", "0.01")
    assert code == 2 and found["message"].startswith(
        "--max-drop: the data has no labels, and no output of the model has"
    )


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the float network runs over the calibration data."""
    found, observe = [], taps.observe

    def counted(*arguments: Any, **more: Any) -> Any:
        found.append(1)
        return observe(*arguments, **more)

    monkeypatch.setattr(taps, "observe", counted)
    return found


def test_the_same_calibration_is_not_done_twice(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(64, 64, 10)
    done, files = passes(monkeypatch), []
    for options, count in (((), 1), ((), 1), (("--no-cache",), 2), (("--calibrator", "auto"), 3)):
        code, found = quantize(capsys, "--target", "tensorrt", *options)
        assert (code, len(done)) == (4, count)
        assert any(note.startswith("ranges found before ") for note in found["notes"]) == (len(files) == 1)
        files.append((Path("q.onnx").read_bytes(), found["ranges"]))
    assert files[0] == files[1] == files[2]
    kept = sorted((project / "cache" / "edgesmith" / "calibration").iterdir())
    assert len(kept) == 2
    with np.load("data.npz") as data:
        x = data["x"]
    x[7, 0] += 1
    np.savez("data.npz", x=x)
    quantize(capsys, "--target", "tensorrt")
    assert len(done) == 4


def test_every_range_is_told_and_few_runs_warn(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(64, 64, 10, count=8)
    code, found = quantize(capsys, "--target", "tensorrt", "--calibrator", "auto")
    assert code == 4
    assert [each["tensor"] for each in found["ranges"]] == ["x", "r0"]
    for each in found["ranges"]:
        assert each["rule"] in CALIBRATORS and each["rule"] != "auto"
        assert each["low"] <= 0 < each["high"] and 0 <= each["clipped"] < 0.1 and 0 <= each["unused"] < 1
    assert max(each["moved"] for each in found["ranges"]) >= 0.1
    (note,) = found["notes"]
    assert note.startswith("warning: more samples would still move the ranges: ")
