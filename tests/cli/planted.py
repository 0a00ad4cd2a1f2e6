"""Faults planted into a finished run, as a pipeline that has the fault would have left it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from sklearn.datasets import load_digits

from edgesmith.benches import metrics
from edgesmith.benches.report import MetricValue, Report, Side, from_json, to_json
from edgesmith.core import digest

Weights = dict[str, np.ndarray]


def report_of(run: Path) -> Report:
    return from_json((run / "report.json").read_text())


def write_report(run: Path, **changes: object) -> None:
    (run / "report.json").write_text(to_json(dataclasses.replace(report_of(run), **changes)))  # type: ignore[arg-type]  # mypy knows no types of names


def change_weights(model: Path, change: Callable[[Weights], None]) -> None:
    """Change the initializers of an ONNX file in place."""
    proto = onnx.load(model)
    weights = {each.name: numpy_helper.to_array(each).copy() for each in proto.graph.initializer}
    change(weights)
    for each in proto.graph.initializer:
        each.CopyFrom(numpy_helper.from_array(weights[each.name], each.name))
    onnx.save(proto, model)


def judged_file(run: Path) -> Path:
    report = report_of(run)
    return run / next(each.path for each in report.artifacts if each.target == report.target)


def relabel(run: Path, **labels: str) -> None:
    """Let the report speak of the judged file as it now is."""
    report, path = report_of(run), judged_file(run)
    fresh = {"digest": digest.of_file(path), "file_bytes": path.stat().st_size, **labels}
    artifacts = tuple(
        dataclasses.replace(each, **fresh) if each.target == report.target else each  # type: ignore[arg-type]  # mypy knows no types of names
        for each in report.artifacts
    )
    write_report(run, artifacts=artifacts)


def measure_again(run: Path, side: str, model: Path) -> None:
    """Run `model` as "original" or "final" on the test split; predictions and report become its own."""
    images, _ = load_digits(return_X_y=True)
    feed = {"image": (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)[1300:1797]}
    (logits,) = onnxruntime.InferenceSession(model.read_bytes()).run(["logits"], feed)
    replace_outputs(run, side, logits)


def replace_outputs(run: Path, side: str, logits: np.ndarray) -> None:
    """These are what `side` answered; logits `(497, 10)`."""
    with np.load(run / "predictions.npz", allow_pickle=False) as stored:
        arrays = {**stored, f"{side}/logits": logits}
    np.savez_compressed(run / "predictions.npz", **arrays)  # type: ignore[arg-type]  # mypy knows no types of names
    found = metrics.interval(
        metrics.METRICS["accuracy"], metrics.METRICS["accuracy"].scores(logits, arrays["labels"]), 0.95
    )
    value = MetricValue(value=found.value, low=found.low, high=found.high, higher_is_better=True, kind="proportion")
    before: Side = getattr(report_of(run), side)
    write_report(run, **{side: dataclasses.replace(before, accuracy=found.value, metrics={"accuracy": value})})
