"""Calibrations found again: with the same graph, data and settings, and never with others."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesmith.compressor import user_cache
from edgesmith.compressor.int8 import calibration_cache
from edgesmith.compressor.int8.calibrate import Rules, calibrate_and_recover
from edgesmith.compressor.int8.calibration_cache import Cache, Calibrated, user_folder
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.values import params_to_json
from edgesmith.core import digest
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.targets.targets import TARGETS
from tests.exporters.graphs import graph, node, random

X = random(24, 4, seed=1)


def model() -> onnx.ModelProto:
    nodes = [node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "y")]
    return graph(nodes, {"w": random(4, 4), "v": random(4, 3)}, {"x": ["n", 4]}, {"y": ["n", 3]})


@dataclasses.dataclass
class Runs:
    """A folder of calibrations, and how often the network really ran over the data."""

    folder: Path
    passes: int = 0
    said: list[str] = dataclasses.field(default_factory=list)

    def calibrate(
        self, graph: onnx.ModelProto | None = None, x: np.ndarray = X, target: str = "tensorrt", **rules: Any
    ) -> Calibrated:
        feeds = [{"x": x[start : start + 8]} for start in range(0, len(x), 8)]
        data = digest.of_json([digest.of_arrays(feed) for feed in feeds])
        self.said.clear()
        _, found, _ = calibrate_and_recover(
            graph or model(),
            lambda: iter(feeds),
            Rules(**rules),
            TARGETS[target].dialects(),
            "cpu",
            "--",
            Progress(),
            Cache(self.folder, data, self.said.append),
        )
        return found

    def entry(self) -> Path:
        (path,) = self.folder.iterdir()
        return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    found, observe = Runs(tmp_path / "cache"), taps.observe

    def counted(*arguments: Any, **more: Any) -> Any:
        found.passes += 1
        return observe(*arguments, **more)

    monkeypatch.setattr(taps, "observe", counted)
    return found


def same(one: Calibrated, other: Calibrated) -> bool:
    params = [params_to_json(each.params) for each in (one, other)]
    return params[0] == params[1] and (one.keep_float, one.ranges) == (other.keep_float, other.ranges)


def test_the_same_again_is_found_to_the_last_digit(runs: Runs) -> None:
    made = runs.calibrate()
    assert (runs.passes, runs.said) == (1, [])
    again = runs.calibrate()
    assert runs.passes == 1 and same(made, again) and len(again.ranges) == 2
    for name, params in again.params.items():
        np.testing.assert_array_equal(params.scale, made.params[name].scale)
        assert params.scale.dtype == np.float32
    assert runs.said == [
        f"ranges found before with the same graph, data and settings: {runs.entry()}; --no-cache finds them anew"
    ]


def _other_weight() -> onnx.ModelProto:
    changed = model()
    weight = numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(9))
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    return changed


def _other_operator() -> onnx.ModelProto:
    changed = model()
    changed.graph.node[1].op_type = "LeakyRelu"
    return changed


def _other_attribute() -> onnx.ModelProto:
    changed = model()
    changed.graph.node[2].attribute.append(helper.make_attribute("alpha", 1.0))
    return changed


def _one_value() -> np.ndarray:
    changed = X.copy()
    changed[17, 2] = np.nextafter(changed[17, 2], np.float32(9))
    return changed


@pytest.mark.parametrize(
    "change",
    [
        {"x": _one_value()},
        {"x": X[:-1]},
        {"x": X[::-1].copy()},  # a moving average depends on the order
        {"graph": _other_weight()},
        {"graph": _other_operator()},
        {"graph": _other_attribute()},
        {"calibrator": "min-max"},
        {"per_tensor": True},
        {"target": "onnxruntime-cpu"},  # other dialects, which `auto` judges by
        {"recover": ("equalize",)},  # another graph
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_else_misses(change: dict[str, Any], runs: Runs) -> None:
    runs.calibrate()
    found = runs.calibrate(**change)
    assert runs.passes == 2 and runs.said == []
    assert same(found, Runs(runs.folder / "other").calibrate(**change))  # what it would be without any cache


def test_another_release_misses(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.calibrate()
    monkeypatch.setattr(calibration_cache.onnxruntime, "__version__", "99")
    runs.calibrate()
    assert runs.passes == 2


def test_edited_code_misses(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files whose code makes ranges are part of the key: all of them are there to be read."""
    read: list[str] = []
    of_file = digest.of_file

    def edited(path: Path) -> str:
        read.append(f"{path.parent.name}/{path.name}")
        return "edited" if path.name == "calibrators.py" else of_file(path)

    runs.calibrate()
    monkeypatch.setattr(calibration_cache.digest, "of_file", edited)
    runs.calibrate()
    assert runs.passes == 2
    assert {
        "calibration/calibrators.py", "calibration/histogram.py", "calibration/observer.py", "calibration/grid.py",
        "sessions/taps.py", "int8/placement.py", "int8/qdq.py", "graph/canonical.py",
        "int8/calibrate.py", "int8/calibration_cache.py", "compressor/values.py",
    } <= set(read)  # fmt: skip


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _another_range(text: str) -> str:
    stored = json.loads(text)
    stored["content"]["params"]["x"]["high"] *= 2
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, ""),  # json says where
        (_another_range, "its content is not what was written"),
        (lambda text: "{}", "'content'"),
        (lambda text: "", "Expecting value"),
    ],
    ids=["cut", "changed", "empty object", "empty"],
)
def test_a_damaged_entry_is_said_and_made_anew(damage: Callable[[str], str], reason: str, runs: Runs) -> None:
    made = runs.calibrate()
    path = runs.entry()
    path.write_text(damage(path.read_text()))
    assert same(runs.calibrate(), made)
    (said,) = runs.said
    assert runs.passes == 2 and said.startswith(f"{path}: cannot be used ({reason}")
    assert said.endswith("; the ranges are found anew")
    runs.calibrate()
    assert runs.passes == 2 and said not in runs.said  # and is whole again


def test_a_folder_that_cannot_be_written_is_said_and_no_reason_to_fail(runs: Runs) -> None:
    runs.folder.write_text("a file")
    assert runs.calibrate().params
    damaged, not_kept = runs.said
    assert damaged.startswith(f"{runs.folder}/")
    assert damaged.endswith(".json: cannot be used (Not a directory); the ranges are found anew")
    assert not_kept == f"{runs.folder}: ranges are not kept (File exists); --no-cache does not try"


def test_a_rule_from_elsewhere_is_never_found_again(runs: Runs) -> None:
    """Its name does not say what it does."""
    for _ in range(2):
        runs.calibrate(calibrator="edgesmith.calibration.calibrators:mse")
    assert runs.passes == 2 and not runs.folder.exists()


def test_the_oldest_entries_go(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "_MOST", 2)
    runs.calibrate()
    os.utime(runs.entry(), (1, 1))
    runs.calibrate(calibrator="min-max")
    runs.calibrate(calibrator="percentile")
    assert len(list(runs.folder.iterdir())) == 2
    runs.calibrate(calibrator="min-max")
    assert runs.passes == 3
    runs.calibrate()
    assert runs.passes == 4


@pytest.mark.parametrize(
    ("given", "root"), [("/x/y", "/x/y"), ("", "HOME/.cache"), ("relative", "HOME/.cache"), (None, "HOME/.cache")]
)
def test_where_a_users_calibrations_are(given: str | None, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert user_folder() == Path(root.replace("HOME", "/home/me")) / "edgesmith" / "calibration"
