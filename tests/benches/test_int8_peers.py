"""benches/peers: finished cells are not made again, a toolkit that is not installed is a hole, the table is what is stored."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.benches.peers.int8_parts import cells, profile, quality, quantizing, table, timing
from edgesmith.benches.peers.int8_parts.models import MODELS, Model
from edgesmith.benches.peers.int8_parts.peers import PEERS, Peer
from edgesmith.benches.peers.int8_parts.tools import TOOLS

ORT = Peer(name="ort", tool="onnxruntime static", says="its default")
OURS = Peer(name="edgesmith", tool="edgesmith", says="ours")
NVIDIA = Peer(name="modelopt", tool="model-optimizer", says="NVIDIA's")


def prepare(folder: Path) -> None:
    """A convolution and a classifier: the class is the brighter half of an image `(1, 8, 8)`."""
    rng = np.random.default_rng(0)
    filters = np.ones((4, 1, 3, 3), np.float32) / 9
    weights = np.zeros((256, 2), np.float32)
    for row in range(256):
        weights[row, int(row % 8 >= 4)] = 1
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(filters, "filters"), numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    for part, count in (("calibration", 32), ("validation", 32), ("test", 64)):
        images = rng.random((count, 1, 8, 8), dtype=np.float32)
        labels = (images[:, 0, :, 4:].sum((1, 2)) > images[:, 0, :, :4].sum((1, 2))).astype(np.int64)
        stored: dict[str, Any] = {"x": images} | ({} if part == "calibration" else {"labels": labels})
        np.savez(folder / f"{part}.npz", **stored)


HALVES = Model(name="halves", says="halves", prepare=prepare, torch=False, batches=(1, 4))


def test_a_cell_is_made_once_and_again_when_its_key_changes_or_its_file_is_gone(tmp_path: Path) -> None:
    path, file, made = tmp_path / "a" / "cell.json", tmp_path / "file", iter(range(9))

    def make() -> cells.Cell:
        file.touch()
        return {"status": "written", "number": next(made)}

    def number(key: int) -> int:
        return int(cells.once(path, {"key": key}, make, file)["number"])

    assert [number(1), number(1), number(2), number(2)] == [0, 0, 1, 1]
    file.unlink()
    assert [number(2), number(2)] == [2, 2]


def test_what_was_cut_short_leaves_the_finished_cell_and_one_that_is_missing_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    cells.once(path, {"key": 1}, lambda: {"value": 1})

    def killed() -> cells.Cell:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.once(path, {"key": 2}, killed)
    assert cells.stored(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["cell.json"]
    assert cells.once(path, {"key": 2}, lambda: {"status": "missing"}) == {"status": "missing"}
    assert cells.stored(path) == {"value": 1}


def test_a_toolkit_that_is_not_installed_is_a_hole_and_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path" / "modelopt").mkdir(parents=True)
    (tmp_path / "path" / "modelopt" / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    cell = quantizing.quantized(tmp_path, HALVES, NVIDIA, {})
    assert (cell["status"], cell["reason"]) == ("missing", "not here")
    elsewhere = quantizing.quantized(tmp_path, HALVES, NVIDIA, {"model-optimizer": "/no/python"})
    assert (elsewhere["status"], elsewhere["reason"]) == ("missing", "no interpreter /no/python")
    assert not quantizing.cell_path(tmp_path, HALVES, NVIDIA).exists()


def test_a_quantizer_runs_in_a_process_of_its_own_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantizing.quantized(tmp_path, HALVES, ORT, {"onnxruntime static": sys.executable})
    assert first["status"] == "written"
    assert first["bytes"] == quantizing.path_of(tmp_path, HALVES, ORT).stat().st_size
    assert 20e6 < first["peak_bytes"] < 2e9
    judged = quality.judged(tmp_path, HALVES, ORT, first)
    assert judged["original"] == 0.875  # the border counts a little less
    assert abs(judged["value"] - 0.875) < 0.05
    assert judged["drop"]["value"] == pytest.approx(judged["original"] - judged["value"])
    monkeypatch.setattr(quantizing, "_child", None)  # neither is made again
    monkeypatch.setattr(quality, "_judge", None)
    assert quantizing.quantized(tmp_path, HALVES, ORT, {}) == first
    assert quality.judged(tmp_path, HALVES, ORT, first) == judged


def test_what_a_tool_raises_is_the_cell(tmp_path: Path) -> None:
    wrong = dataclasses.replace(ORT, settings={"no_such_keyword": 1})
    cell = quantizing.quantized(tmp_path, HALVES, wrong, {})
    assert cell["status"] == "failed"
    assert cell["reason"] == "TypeError: quantize_static() got an unexpected keyword argument 'no_such_keyword'"
    of_torch = Peer(name="inc", tool="neural-compressor", says="of torch")
    assert quantizing.quantized(tmp_path, HALVES, of_torch, {})["reason"] == (
        "needs a torch module, and this model is an ONNX file"
    )


def store(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": "", "value": value}))


def fill(root: Path, speeds: dict[str, float], kept: dict[str, bool]) -> None:
    prepare(HALVES.folder(root))
    for batch in HALVES.batches:
        speedup = {name: {"value": s, "low": 0.9 * s, "high": 1.1 * s} for name, s in speeds.items()}
        cell = {"float_ms": 1.5, "noise_floor": 0.01, "restarts": 5, "load": [0.1, 0.2], "speedup": speedup}
        cell["files"] = dict.fromkeys(speeds, "d")
        store(timing.cell_path(root, HALVES, batch, 1), cell)
    for peer in (OURS, ORT):
        written = {
            "status": "written",
            "reason": "",
            "seconds": 4.4,
            "peak_bytes": 5e8,
            "bytes": 1234567,
            "digest": "d",
        }
        store(quantizing.cell_path(root, HALVES, peer), written)
        judged = {"file": "d", "status": "ran", "value": 0.99, "kept": kept[peer.name]}
        drop = {"value": 0.01, "low": 0.005, "high": 0.015}
        store(quality.cell_path(root, HALVES, peer), judged | {"drop": drop})
    failed = {"status": "failed", "reason": "ValueError: no", "seconds": 2.0, "peak_bytes": 1e8}
    store(quantizing.cell_path(root, HALVES, NVIDIA), failed)


def test_the_table_shows_what_is_stored(tmp_path: Path) -> None:
    fill(tmp_path, {"edgesmith": 2.0, "ort": 3.0}, {"edgesmith": True, "ort": True})
    shown = table.write(tmp_path, [HALVES], [OURS, ORT, NVIDIA])
    assert (
        "| edgesmith | 99.00 %, 1.00 (0.50 to 1.50) | 2.00x (1.80 to 2.20) | 2.00x (1.80 to 2.20) | 1.23 | 4 s | 500 MB |"
        in shown
    )
    assert "| modelopt | failed: ValueError: no | - | - | - | 2 s | 100 MB |" in shown
    assert "| ort | 3.00x | 1 | 3.00x | 1 | 1 |" in shown
    assert "| modelopt | 1.00x | 1 | 1.00x | 1 | 0 |" in shown
    assert "- halves, batch 1, 1 thr.: 2.00x; ort 3.00x\n- halves, batch 4, 1 thr.: 2.00x; ort 3.00x\n" in shown


def test_what_the_layers_take_is_shown_of_the_file_that_is_there(tmp_path: Path) -> None:
    fill(tmp_path, {"edgesmith": 2.0, "ort": 3.0}, {"edgesmith": True, "ort": True})
    for batch, file in ((1, "d"), (4, "another")):
        cell = {"file": file, "float_ms": 2.0, "int8_ms": 1.0, "layers_ms": 0.5}
        store(profile.cell_path(tmp_path, HALVES, batch), cell)
    shown = table.write(tmp_path, [HALVES], [OURS, ORT])
    assert "| halves | 1 | 2 | 1 | 0.5 | 2.00x | 4.00x |" in shown
    assert "| halves | 4 | 2 |" not in shown


def test_a_file_is_profiled_beside_the_float_file(tmp_path: Path) -> None:
    found = profile.profiled(tmp_path, HALVES, HALVES.folder(tmp_path) / "model.onnx", 4)
    assert 0 < found["layers_ms"] < found["int8_ms"] < 10 * found["float_ms"]


def test_a_file_of_another_runtime_or_of_our_own_is_no_rival(tmp_path: Path) -> None:
    fill(tmp_path, {"edgesmith": 2.0, "ort": 3.0}, {"edgesmith": True, "ort": True})
    for other in ({"session": "another"}, {"tool": "edgesmith"}):
        shown = table.write(tmp_path, [HALVES], [OURS, dataclasses.replace(ORT, **other)])
        assert "ort 3.00x" not in shown.split("### Where another is better than edgesmith in the same runtime")[1]


def test_a_file_that_is_not_good_enough_is_no_rival(tmp_path: Path) -> None:
    fill(tmp_path, {"edgesmith": 2.0, "ort": 3.0}, {"edgesmith": True, "ort": False})
    shown = table.write(tmp_path, [HALVES], [OURS, ORT])
    assert "| ort | **99.00 %, 1.00 (0.50 to 1.50)** | 3.00x (2.70 to 3.30)" in shown
    assert "| ort | 1.00x | 1 | 1.00x | 1 | 0 |" in shown
    assert shown.endswith("beyond the intervals\n\nNowhere.\n")


def test_cells_of_a_file_that_is_no_longer_there_are_not_shown(tmp_path: Path) -> None:
    fill(tmp_path, {"edgesmith": 2.0, "ort": 3.0}, {"edgesmith": True, "ort": True})
    written = {"status": "written", "reason": "", "seconds": 4.4, "bytes": 1234567, "digest": "another"}
    store(quantizing.cell_path(tmp_path, HALVES, ORT), written)
    shown = table.write(tmp_path, [HALVES], [OURS, ORT])
    assert "| ort | **does not run**: not judged yet | - | - | 1.23 | 4 s | - |" in shown


def test_with_more_threads_the_fastest_file_of_each_tool_is_timed(tmp_path: Path) -> None:
    speeds = {"ort": 1.0, "ort-u8": 2.0, "nncf": 1.7, "nncf-mixed": 1.6, "openvino": 2.5, "openvino-float": 1.2}
    fill(tmp_path, speeds, {"edgesmith": True, "ort": True})
    peers = {peer: {"digest": ""} for peer in PEERS if peer.name in speeds}
    assert [peer.name for peer in timing._fastest(tmp_path, HALVES, peers)] == [
        "ort-u8",
        "nncf",
        "openvino",
        "openvino-float",
    ]


def test_names_are_unique_and_every_tool_is_known() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert len({model.name for model in MODELS}) == len(MODELS)
    assert {peer.tool for peer in PEERS} == set(TOOLS)
