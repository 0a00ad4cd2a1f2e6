"""`edgesmith sensitivity`: one part at a time; the metric is computed, the times come from the target."""

import dataclasses
import json
import math
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgesmith.benches.report.sensitivity_report import Sensitivity, render_html
from edgesmith.cli import main
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning import blocks, deployed, sensitivity
from edgesmith.compressor.pruning.latency_model import Plan
from edgesmith.compressor.pruning.prune_to_latency import Planner
from edgesmith.compressor.pruning.sensitivity import measure_sensitivity, trained
from edgesmith.compressor.run_directory import RunDirectory
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import TaskError
from edgesmith.core.task import Task
from edgesmith.core.values import Artifact


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and times without a runtime: a network takes as long as it has parameters."""

    def best_form(candidate: Candidate, context: Context, folder: Path) -> Artifact:
        return Artifact(
            path=folder,
            target="onnxruntime-cpu",
            dialect="float",
            precision="float32",
            inputs=(),
            outputs=(),
            digest="",
        )

    def times(
        networks: Iterable[Candidate], form: Artifact, context: Context, folder: Path, done: Callable[[int], None]
    ) -> list[float]:
        whole, *others = (network.parameters() for network in networks)
        return [other / whole for other in others]

    monkeypatch.setattr(deployed, "best_form", best_form)
    monkeypatch.setattr(deployed, "times", times)


def measured(original: Candidate, context: Context) -> Sensitivity:
    return measure_sensitivity(original, context, 200, RunDirectory(context.work))


def test_every_group_and_block_is_taken_alone(clock: None, original: Candidate, context: Context) -> None:
    found = measured(original, context)
    assert {curve.name for curve in found.curves if curve.kind == "block"} == set(
        blocks.find(original.module(), original.example)
    )
    groups = [curve for curve in found.curves if curve.kind == "group"]
    assert {curve.name for curve in groups} >= {"stem", "stage1.0.conv1", "stage2.1.conv1"}
    assert found.not_pruned == {"head": "its channels are the model's output"}
    assert found.whole > 0.9 and found.samples == 200
    for curve in groups:
        assert [point.channels for point in curve.points] == sorted(
            (point.channels for point in curve.points), reverse=True
        )
        ratios = [point.latency_ratio for point in curve.points]
        assert None not in ratios and ratios == sorted(ratios, reverse=True)  # type: ignore[type-var]
        assert all(point.share == point.channels / curve.channels for point in curve.points)
    # Half the channels of the stream that everything reads cost more than half of one inner convolution's.
    narrow = {curve.name: curve.points[-1] for curve in groups}
    assert found.loss(narrow["stem"]) > found.loss(narrow["stage1.0.conv1"])


def test_one_network_is_held_at_a_time(
    clock: None, original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one for each width of each group: of a large network all of them would not fit into memory."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    without = Planner.without

    def watched(planner: Planner, plan: Plan) -> Candidate:
        nonlocal most
        found = without(planner, plan)
        alive.add(next(iter(found.weights.values())))
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(Planner, "without", watched)
    assert len(measured(original, context).curves) > 3
    assert most <= 2


def test_without_the_runtime_the_metric_is_still_told(original: Candidate, context: Context) -> None:
    found = measured(original, dataclasses.replace(context, targets=("tensorrt",)))
    assert found.unmeasured == "no CUDA device"
    assert all(point.latency_ratio is None for curve in found.curves for point in curve.points)
    page = render_html(found)
    assert "No time was measured: no CUDA device" in page and "not measured" in page


def test_the_page_has_a_chart_and_a_table_for_each_and_escapes_names(
    clock: None, original: Candidate, context: Context
) -> None:
    found = measured(original, context)
    hostile = dataclasses.replace(found, task="<script>alert(1)</script>")
    page = render_html(hostile)
    assert "<script>" not in page
    assert page.count("<svg") == len(found.curves)
    assert page.count("<tr><td>") == sum(len(curve.points) for curve in found.curves)


def test_an_onnx_file_is_refused(task: Task) -> None:
    with pytest.raises(TaskError) as caught:
        trained(dataclasses.replace(task, model=Path("model.onnx")))
    assert str(caught.value) == (
        "task 'digits': model: an ONNX file has no channels that can be pruned; give a torch model"
    )


def test_what_was_measured_before_a_kill_is_not_measured_again(
    clock: None, original: Candidate, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = 0
    evaluate, times = sensitivity.evaluate, deployed.times

    def counted(*args: Any) -> dict[str, float]:
        nonlocal evaluated
        evaluated += 1
        if evaluated == 4:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(sensitivity, "evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(original, context)
    found = measured(original, context)
    networks = 1 + sum(len(curve.points) for curve in found.curves)
    assert evaluated == networks + 1  # the one that was cut short twice
    timed: list[None] = []
    monkeypatch.setattr(deployed, "times", lambda *args: (timed.append(None), times(*args))[1])
    assert measured(original, context) == found
    assert (evaluated, timed) == (networks + 1, [])
    again = measure_sensitivity(original, context, 200, RunDirectory(tmp_path / "elsewhere"))
    assert again == found and (evaluated, len(timed)) == (2 * networks + 1, 1)


QUICK = """
import dataclasses, functools, pathlib
from tests.examples_at import digits_example

digits = digits_example()

def load(net):
    with pathlib.Path(__file__).with_name("loaded").open("a") as file:
        file.write("x")

def task():
    return dataclasses.replace(digits.task(), model=functools.partial(digits.DigitsNet, 8), load_weights=load)
"""


def test_the_command_prints_json_and_writes_the_page(
    clock: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the example's task, less its training."""
    task, page = tmp_path / "task.py", tmp_path / "page.html"
    task.write_text(QUICK)
    command = [
        "sensitivity",
        str(task),
        "--samples",
        "50",
        "--html",
        str(page),
        "--json",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "digits" and found["curves"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert (tmp_path / "loaded").read_text() == "x"  # the task's own code made the original once
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main(["sensitivity", str(task), "--target", "tensort"]) == 2
    assert "--target: unknown 'tensort'; did you mean 'tensorrt'? known: " in capsys.readouterr().err


def test_a_metric_that_is_undefined_without_a_part_is_kept_too(
    clock: None, original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correlation with answers that are all alike, say."""
    values = iter([0.9] + [math.nan] * 1000)
    monkeypatch.setattr(sensitivity, "evaluate", lambda *_: {"accuracy": next(values)})
    for _ in range(2):
        found = measured(original, context)
        assert found.whole == 0.9 and all(math.isnan(point.metric) for curve in found.curves for point in curve.points)
