"""A report that contradicts itself or its predictions is refused before anything is judged by it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.gates.finished import Finished, consistent, read
from edgesmith.benches.metrics.groups import GroupLoss
from edgesmith.benches.report.report import Report, to_json
from edgesmith.core.errors import ArtifactError
from tests.benches.sample_report import make_report

SAMPLES = make_report().test_samples


def arrays(classes: int = 3) -> dict[str, np.ndarray]:
    labels = np.arange(SAMPLES) % classes
    return {"labels": labels, "final/logits": np.eye(classes, dtype=np.float32)[labels], "slices/dark": labels == 0}


def group(kind: Any, name: str) -> GroupLoss:
    return GroupLoss(kind=kind, name=name, samples=9, original=None, final=None, drop=None)


def found(report: Report, **more: np.ndarray) -> Finished:
    return Finished(path=Path("r.json"), report=report, arrays=arrays() | more)


def test_one_that_fits_comes_back() -> None:
    groups = (*(group("class", name) for name in "abc"), group("slice", "dark"))
    fits = found(dataclasses.replace(make_report(), groups=groups))
    assert consistent(fits) is fits


def speedup(low: float, median: float, high: float) -> dict[str, Any]:
    entry = make_report().latency[0]
    changed = dataclasses.replace(entry.speedup, low=low, median=median, high=high)
    return {"latency": (dataclasses.replace(entry, speedup=changed),)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "x"}, "artifacts: no file of its target 'x'"),
        ({"artifacts": make_report().artifacts * 2}, "artifacts: several files of its target 'onnxruntime-cpu'"),
        ({"main_metric": "top5"}, "main_metric: no figure of 'top5' for both sides"),
        ({"against": "before"}, "against: there is no stage 'before'"),
        ({"confidence": 1e308}, "confidence: must lie between 0.5 and 1, got 1e+308"),
        (speedup(2.0, 3.0, 0.0), "latency: batch 1: no speed-up has the interval 3.0 (2.0 to 0.0)"),
        (speedup(0.0, 0.0, 0.0), "latency: batch 1: no speed-up has the interval 0.0 (0.0 to 0.0)"),
        (
            {"limits": (dataclasses.replace(make_report().limits[0], low=1.0, measured=None, high=None),)},
            "limits: drop: no figure has the interval None (1.0 to None)",
        ),
        ({"test_samples": 99}, "test_samples: 99, and predictions.npz has 360"),
        (
            {"groups": tuple(group("class", name) for name in "abcd")},
            "groups: 4 classes, and the labels in predictions.npz have 3",
        ),
        ({"groups": (group("slice", "bright"),)}, "groups: slice 'bright', and predictions.npz has none of that name"),
    ],
)
def test_what_contradicts_itself_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{re.escape(f'r.json: {said}')}$"):
        consistent(found(dataclasses.replace(make_report(), **changes)))


def test_a_report_that_merged_classes_of_one_name_is_a_baseline_but_no_run() -> None:
    merged = found(dataclasses.replace(make_report(), groups=(group("class", "crane"), group("class", "owl"))))
    assert consistent(merged) is merged
    with pytest.raises(ArtifactError) as caught:
        merged.masks()
    assert str(caught.value) == (
        "r.json: groups: 2 classes, and the labels have 3: written before those of one name were told apart; run "
        "`edgesmith compress` again"
    )


@pytest.mark.parametrize(("old", "fits"), [(7, True), (6, False)])
def test_an_old_task_has_a_test_split_of_its_own_size(old: int, fits: bool, tmp_path: Path) -> None:
    report = dataclasses.replace(make_report(), predictions="predictions.npz")
    (tmp_path / "report.json").write_text(to_json(report))
    np.savez(
        tmp_path / "predictions.npz", **arrays(), **{"old/labels": np.zeros(7), "old/final/logits": np.zeros((old, 3))}
    )
    if fits:
        assert consistent(read(tmp_path / "report.json")).arrays is not None
        return
    with pytest.raises(ArtifactError, match="arrays of different lengths"):
        read(tmp_path / "report.json")


def test_a_slice_that_is_no_mask() -> None:
    with pytest.raises(ArtifactError, match=r"predictions\.npz: slices that do not say True or False of each sample"):
        consistent(found(make_report(), **{"slices/dark": np.ones(SAMPLES)}))


@pytest.mark.parametrize("labels", [np.array(3), np.arange(5)])
def test_predictions_of_another_length(labels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(to_json(make_report()))
    np.savez(tmp_path / "predictions.npz", **(arrays() | {"labels": labels}))  # type: ignore[arg-type]  # its stub takes the keys for `allow_pickle`
    with pytest.raises(ArtifactError, match=r"predictions\.npz: arrays of different lengths"):
        read(tmp_path / "report.json")
