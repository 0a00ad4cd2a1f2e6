"""The parts of a bundle's runner that need no device: distances, settings, metrics that travel by name, what is kept."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.device import on_device
from edgesmith.benches.device.on_device import distance
from edgesmith.benches.metrics import metrics
from edgesmith.core.errors import ExitCode, MeasurementError, VoidError
from edgesmith.core.task import Metric

MANIFEST: dict[str, Any] = {
    "task": "small",
    "metric": {"name": "accuracy", "table": "accuracy", "output": "logits", "higher_is_better": True},
    "threads": 2,
    "confidence": 0.95,
    "reference": "reference.npz",
    "measure": {"batch_sizes": [1, 8], "seconds": 2.0, "restarts": 5},
}


def test_distances() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    assert distance(reference, reference) == {"max_abs": 0.0, "snr_db": None}
    near = reference + np.array([[0.5, 0.0], [0.0, 0.0]], np.float32)
    assert distance(near, reference) == {"max_abs": 0.5, "snr_db": pytest.approx(20.0)}  # 25 over 0.25
    assert distance(near * 0 + 1, reference * 0) == {"max_abs": 1.0, "snr_db": None}
    with pytest.raises(
        MeasurementError, match=r"^an output is NaN or infinite: the model computes something else here$"
    ):
        distance(np.array([np.nan]), np.array([1.0]))


def test_settings_are_the_runs_unless_others_are_asked_for() -> None:
    none = argparse.Namespace(threads=None, batch=None, seconds=None)
    assert on_device._settings(MANIFEST, none) == {"threads": 2, "batch_sizes": [1, 8], "seconds": 2.0, "restarts": 5}
    asked = argparse.Namespace(threads=1, batch="4,16", seconds=5.0)  # seconds of all restarts together
    assert on_device._settings(MANIFEST, asked) == {"threads": 1, "batch_sizes": [4, 16], "seconds": 1.0, "restarts": 5}


def test_a_metric_travels_by_name_only_where_it_computes_the_same() -> None:
    known = metrics.METRICS["accuracy"]
    assert metrics.table_name(known) == "accuracy"
    assert metrics.table_name(dataclasses.replace(known, name="right answers", output="logits")) == "accuracy"
    assert metrics.table_name(dataclasses.replace(known, higher_is_better=False)) is None
    own = Metric(name="accuracy", scores=lambda output, labels: (output.argmax(1) == labels).astype(float))
    assert metrics.table_name(own) is None, "its code is the task's, whatever it is called"
    for name, metric in metrics.METRICS.items():
        assert metrics.table_name(metric) == name


@pytest.fixture
def run(tmp_path: Path) -> on_device._Run:
    outputs = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
    arrays = {"inputs/x": np.zeros((4, 1)), "labels": np.array([0, 1, 2, 3])}
    np.savez(tmp_path / "reference.npz", **arrays, **{f"{side}/logits": outputs for side in ("original", "final")})
    settings = {"threads": 1, "batch_sizes": [1], "seconds": 0.1, "restarts": 5}
    (tmp_path / "work").mkdir()
    return on_device._Run(tmp_path, MANIFEST, "0" * 64, settings)


def test_answers_are_held_against_labels_and_reference(run: on_device._Run) -> None:
    right, wrong = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[1, 1, 2, 2]]
    found = run._accuracy({"original": {"logits": right}, "final": {"logits": wrong}})
    assert found is not None
    assert (found["original"]["value"], found["final"]["value"], found["drop"]["value"]) == (1.0, 0.5, 0.5)
    assert found["reference"] == {"original": 0.75, "final": 0.75}
    assert run._agreement("original", {"logits": right}) == 0.75
    assert run._agreement("final", {"logits": wrong}) == 0.75


def test_what_is_finished_is_not_done_again(run: on_device._Run, tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"latency": len(calls)}

    assert [run._once("latency-x", make) for _ in range(2)] == [{"latency": 1}, {"latency": 1}]
    (tmp_path / "work" / "latency-x.json").write_text('{"key": ')  # half a file, as a power cut may leave it
    assert run._once("latency-x", make) == {"latency": 2}
    other = on_device._Run(tmp_path, MANIFEST, "1" * 64, run._settings)
    assert other._once("latency-x", make) == {"latency": 3}
    assert json.loads((tmp_path / "work" / "latency-x.json").read_text())["found"] == {"latency": 3}


def test_a_void_measurement_is_a_row_without_figures_and_unproven(
    run: on_device._Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bench --on` brings the row back as a file that was not measured: exit code 4 there and here."""

    def hot(self: on_device._Run, model: Any) -> dict[str, Any]:
        raise VoidError("the GPU was slowed down")

    monkeypatch.setattr(on_device._Run, "_measured", hot)
    model = {"target": "onnxruntime-cpu", "dialect": "float", "precision": "float32", "judged": True, "path": "m.onnx"}
    (tmp_path / "m.onnx").write_bytes(b"1234")
    files = {name: {"sha256": "0" * 64, "bytes": 4} for name in ("m.onnx", "reference.npz")}
    manifest = {**MANIFEST, "original": {"path": "m.onnx"}, "models": [model], "files": files}
    options = argparse.Namespace(threads=1, batch="1", seconds=0.1)
    assert on_device.main(tmp_path, manifest, "0" * 64, options) == ExitCode.UNPROVEN
    (row,) = json.loads((tmp_path / "result.json").read_text())["models"]
    assert (row["measured"], row["reason"]) == (False, "the GPU was slowed down")


def test_a_reader_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    on_device.say("3 of 5")
