"""Faults planted into a finished run, as a pipeline that has the fault would have left it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from sklearn.datasets import load_digits

from edgesmith.benches.metrics import metrics
from edgesmith.benches.report.report import MetricValue, Report, Side, from_json, to_json
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


def break_bright_images(model: Path, mean: float) -> None:
    """Let a file answer the opposite for every image whose mean is above `mean`; nothing else changes."""
    proto = onnx.load(model)
    graph, node = proto.graph, onnx.helper.make_node
    inside = next(each for each in graph.node if "logits" in each.output)
    inside.output[:] = ["planted/inner" if name == "logits" else name for name in inside.output]
    for name, array in (
        ("planted/axes", np.array([1, 2, 3])), ("planted/mean", np.float32(mean)), ("planted/shape", np.array([-1, 1])),
    ):  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    old = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")) < 18
    graph.node.extend([
        node("ReduceMean", ["image"], ["planted/brightness"], axes=[1, 2, 3], keepdims=0)
        if old
        else node("ReduceMean", ["image", "planted/axes"], ["planted/brightness"], keepdims=0),
        node("Greater", ["planted/brightness", "planted/mean"], ["planted/bright"]),
        node("Reshape", ["planted/bright", "planted/shape"], ["planted/column"]),
        node("Neg", ["planted/inner"], ["planted/opposite"]),
        node("Where", ["planted/column", "planted/opposite", "planted/inner"], ["logits"]),
    ])  # fmt: skip
    onnx.save(proto, model)


def do_the_work_again(model: Path, times: int) -> None:
    """Let a file compute its answer `times` more, each time from the input and the answer before; it answers the same.

    A zero times the last answer's mean is added to the input, so that no runtime can leave a pass out.
    """
    proto = onnx.load(model)
    graph, node = proto.graph, onnx.helper.make_node
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "planted/zero"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "planted/four"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "planted/first"))
    own, weights = list(graph.node), {each.name for each in graph.initializer}
    made = {name for each in own for name in each.output}
    del graph.node[:]
    given = "image"
    for turn in range(times + 1):
        last = turn == times

        def name(old: str, turn: int = turn, last: bool = last, given: str = given) -> str:
            if old == "image":
                return given
            return old if old in weights or old not in made or last else f"planted/{turn}/{old}"

        for each in own:
            copied = onnx.NodeProto()
            copied.CopyFrom(each)
            copied.name = f"{each.name}/{turn}"
            copied.input[:] = [name(old) for old in each.input]
            copied.output[:] = [name(old) for old in each.output]
            graph.node.append(copied)
        if not last:
            at = f"planted/{turn}"
            graph.node.extend([
                node("Gather", [f"{at}/logits", "planted/first"], [f"{at}/one"], axis=1),
                node("Reshape", [f"{at}/one", "planted/four"], [f"{at}/shaped"]),
                node("Mul", [f"{at}/shaped", "planted/zero"], [f"{at}/nothing"]),
                node("Add", ["image", f"{at}/nothing"], [f"{at}/image"]),
            ])  # fmt: skip
            given = f"{at}/image"
    onnx.save(proto, model)
