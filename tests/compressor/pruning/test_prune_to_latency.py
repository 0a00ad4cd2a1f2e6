"""Pruning to a time: the goal is met by what is measured, however wrong the model; what it costs is measured too."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgesmith.compressor import artifacts
from edgesmith.compressor.artifacts import Written
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.edit import BlockEdit
from edgesmith.compressor.int8.bounds import Bounds
from edgesmith.compressor.pruning import deployed, prune_to_latency
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Deployment, Graph
from edgesmith.compressor.structure import measure
from edgesmith.core.errors import RecipeError, UnreachableError
from edgesmith.core.task import Task
from edgesmith.core.values import Artifact

from ..conftest import Killed
from .conftest import WHOLE_MS, cost


@pytest.mark.parametrize("goal", [{"latency_ratio": 0.6}, {"latency_ms": 1.2}])
def test_what_is_measured_meets_the_goal(
    goal: dict[str, float], clock: list[float], original: Candidate, context: Context
) -> None:
    result = Prune(id="prune", round_to=2, **goal).run(original, context)
    # Within the rounds a network was found a little below the goal; what the model predicted alone would have missed it.
    assert clock[0] > 0.6
    assert 0.55 < cost(result) * 1.2 / cost(original) <= 0.6
    assert any(note.startswith("latency model: ") for note in context.notes)
    shown = "0.6 asked" if "latency_ratio" in goal else "1.2 ms asked"
    assert any("of 2 ms as deployed" in note and shown in note for note in context.notes)


@pytest.mark.parametrize(
    ("goal", "kept"),
    [
        ({"latency_ms": 1.2}, {"key": "latency_ms", "value": 1.2}),
        ({"latency_ms": 9.0}, {"key": "latency_ms", "value": 9.0}),
        ({"latency_ratio": 0.6}, {"key": "latency_ratio", "value": 0.6, "whole": 0.25}),
    ],
)
def test_what_was_asked_is_left_for_the_verdict(
    goal: dict[str, float],
    kept: dict[str, object],
    clock: list[float],
    original: Candidate,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = deployed.compare
    file = Artifact(
        path=Path("original"), target="onnxruntime-cpu", dialect="float", precision="float32", inputs=(), outputs=(),
        digest="",
    )  # fmt: skip
    monkeypatch.setattr(
        deployed, "compare", lambda one, other, at: (8.0, 0.25) if one == file else compare(one, other, at)
    )
    context = dataclasses.replace(context, deployment=Deployment(bounds=Bounds(original=file)))
    Prune(id="prune", round_to=2, **goal).run(original, context)
    assert context.for_verdict == {"asked": kept}


class Branches(torch.nn.Module):
    """Adds outside of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(8, 10)
        self.branches = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.BatchNorm2d(8), Branch()) for _ in range(4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        for branch in self.branches:
            x = x + branch(x)
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


class Branch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(x)))
        return result


def test_a_branch_may_leave_whose_result_is_added_outside(
    clock: list[float], original: Candidate, context: Context
) -> None:
    torch.manual_seed(0)
    module = Branches().eval()
    module.branches[2][1].down.weight.data.zero_()  # type: ignore[index, union-attr, operator]
    module.branches[2][1].down.bias.data.zero_()  # type: ignore[index, union-attr, operator]
    branches = dataclasses.replace(original, factory=Branches, weights=state_of(module))
    result = Prune(id="prune", round_to=2, latency_ratio=0.8).run(branches, context)
    assert BlockEdit(block="branches.2.1", zero=True) in result.edits
    assert torch.isfinite(result.module()(original.example["image"])).all()
    assert "taken out: branches.2.1" in context.notes


def test_blocks_leave_only_where_they_may(clock: list[float], original: Candidate, context: Context) -> None:
    free = Prune(id="prune", round_to=8, latency_ratio=0.5).run(original, context)
    kept = Prune(id="prune", round_to=2, latency_ratio=0.5, blocks=()).run(original, context)
    assert not any(hasattr(edit, "block") for edit in kept.edits)
    assert cost(free) * 1.2 / cost(original) <= 0.5


def test_a_time_below_everything_is_refused_with_the_best_there_is(
    clock: list[float], original: Candidate, context: Context
) -> None:
    with pytest.raises(
        UnreachableError,
        match=r"^stages\[0\] 'stage'\.latency_ratio: 0\.01 cannot be reached; the fastest that can be had takes 0\.\d+; "
        r"ask for more, lower round_to, or let more layers and blocks go$",
    ) as caught:
        Prune(id="prune", latency_ratio=0.01).run(original, context)
    assert caught.value.exit_code == 3


def test_before_it_is_refused_the_smallest_was_timed(
    clock: list[float], original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One round is not enough to come down to 0.45; the smallest network is faster, and was never solved for.
    monkeypatch.setattr(prune_to_latency, "_ROUNDS", 1)
    result = Prune(id="prune", latency_ratio=0.45, blocks=()).run(original, context)
    assert clock[0] > 0.45 >= clock[-1] and len(clock) == 2
    assert cost(result) * 1.2 / cost(original) == pytest.approx(clock[-1])


@pytest.mark.parametrize(("asked", "text"), [(4.0, "4 ms"), (2.1, "2.1 ms"), (2.0, "2 ms")])
def test_a_time_that_is_met_already_needs_no_pruning(
    asked: float,
    text: str,
    clock: list[float],
    original: Candidate,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("allocate", "measure_damage"):
        monkeypatch.setattr(prune_to_latency, name, lambda *_: pytest.fail("planned"))
    result = Prune(id="prune", latency_ms=asked).run(original, context)
    assert result.digest() == original.digest() and clock == []
    assert f"nothing is pruned: it takes 2 ms as deployed, and {text} is asked" in context.notes


@pytest.mark.parametrize(
    ("changed", "same"),
    [({"dialect": "u8-asymmetric"}, True), ({"dialect": "float", "precision": "float32"}, False)],
)
def test_latencies_are_kept_for_a_network_in_whichever_int8_form_it_was_fastest(
    changed: dict[str, Any],
    same: bool,
    clock: list[float],
    original: Candidate,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys: list[Any] = []

    def once(key: Any, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        keys.append(json.loads(json.dumps(key)))
        return make(context.work)

    context = dataclasses.replace(context, deployment=Deployment(once=once))
    best_form = deployed.best_form
    for form in ({}, changed):
        monkeypatch.setattr(
            deployed, "best_form", lambda *given, form=form: dataclasses.replace(best_form(*given), **form)
        )
        Prune(id="prune", round_to=2, latency_ratio=0.8).run(original, context)
    assert (keys[0] == keys[1]) is same


def test_a_killed_run_never_times_the_file_of_another_network(
    original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock's noise gives a resumed run other plans; files of the killed one still lie in its work folder."""
    noise, compared = 1.0, 0

    def write(graph: Graph, target: str, task: Task, folder: Path, *_: Any, **__: Any) -> Written:
        artifact = Artifact(
            path=folder, target=target, dialect="u8", precision="int8", inputs=(), outputs=(), digest=str(graph.digest)
        )  # fmt: skip
        return Written(artifact=artifact, reason="")

    def times(networks: Iterable[Candidate], *_: Any) -> list[float]:
        whole, *others = map(cost, networks)
        return [(other / whole) ** noise for other in others]

    def compare(whole: Artifact, part: Artifact, context: Context) -> tuple[float, float]:
        nonlocal compared
        compared += 1
        if compared == 3:
            raise Killed
        return WHOLE_MS, float(part.digest) / float(whole.digest)

    best_form = deployed.best_form

    def checked(network: Candidate, context: Context, folder: Path) -> Artifact:
        file = best_form(network, context, folder)
        assert float(file.digest) == cost(network), "the file of another network"
        return file

    monkeypatch.setattr(deployed, "_graph", lambda network, *_: Graph(path=Path(), digest=str(cost(network))))
    monkeypatch.setattr(deployed, "best_form", checked)
    monkeypatch.setattr(deployed.artifacts, "write", write)
    monkeypatch.setattr(deployed, "times", times)
    monkeypatch.setattr(deployed, "compare", compare)
    stage = Prune(id="prune", round_to=2, latency_ratio=0.6)
    with pytest.raises(Killed):
        stage.run(original, context)
    noise = 0.7
    stage.run(original, context)
    assert compared > 4


def test_another_goal_measures_no_other_widths_again(
    clock: list[float], original: Candidate, context: Context, tmp_path: Path
) -> None:
    kept: dict[str, dict[str, object]] = {}
    made = 0

    def once(key: object, make: Callable[[Path], dict[str, object]]) -> dict[str, object]:
        nonlocal made
        if repr(key) not in kept:
            made += 1
            kept[repr(key)] = make(tmp_path)
        return kept[repr(key)]

    context = dataclasses.replace(context, deployment=Deployment(once=once))
    for ratio in (0.8, 0.6):
        Prune(id="prune", round_to=4, latency_ratio=ratio).run(original, context)
    assert made == 1


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"latency_ratio": 0.5, "macs_ratio": 0.5}, "w: set one of macs_ratio, params_ratio, channel_ratio, "
         "latency_ratio, latency_ms, or a latency and params_ratio; got ['macs_ratio', 'latency_ratio']"),
        ({"latency_ratio": 0.5, "latency_ms": 1.0}, "w: set one of macs_ratio, params_ratio, channel_ratio, "
         "latency_ratio, latency_ms, or a latency and params_ratio; got ['latency_ratio', 'latency_ms']"),
        ({"params_ratio": 0.5, "channel_ratio": 0.5}, "w: set one of macs_ratio, params_ratio, channel_ratio, "
         "latency_ratio, latency_ms, or a latency and params_ratio; got ['params_ratio', 'channel_ratio']"),
        ({"latency_ms": 1.0, "steps": 2}, "w.steps: a latency is met by measurement; leave it out"),
        ({"latency_ms": 1.0, "allocation": "uniform"}, "w.allocation: a latency is met by measurement; leave it out"),
        ({"macs_ratio": 0.5, "blocks": ("a",)}, "w.blocks: only a latency takes blocks out; see the stage 'prune-blocks'"),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together(keys: dict[str, object], text: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Prune(id="prune", **keys).check(task, "w")  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_a_target_that_cannot_be_measured_is_refused_before_any_work(original: Candidate, context: Context) -> None:
    context = dataclasses.replace(context, targets=("tensorrt",))
    with pytest.raises(RecipeError) as caught:
        Prune(id="prune", latency_ratio=0.5).rehearse(original, context)
    assert str(caught.value) == (
        "stages[0] 'stage': a latency cannot be measured on 'tensorrt': no CUDA device; use macs_ratio, or another target"
    )


def test_a_block_that_does_not_exist(original: Candidate, context: Context) -> None:
    with pytest.raises(RecipeError) as caught:
        Prune(id="prune", latency_ratio=0.5, blocks=("stage9.*",)).rehearse(original, context)
    assert str(caught.value) == (
        "stages[0] 'stage'.blocks: 'stage9.*' matches no block; blocks: stage1.0, stage1.1, stage2.1"
    )


@pytest.mark.alone
def test_the_deployed_network_is_measured_for_real(
    original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MOST_SAMPLES", 4), ("_RANDOM", 1), ("_ROUNDS", 1), ("_CLOSE", 0.9)):
        monkeypatch.setattr(prune_to_latency, name, value)
    quick = dataclasses.replace(context.deployment.measure, batch_sizes=(32,), seconds=0.1)
    context = dataclasses.replace(context, deployment=Deployment(measure=quick))
    stage = Prune(id="prune", latency_ratio=0.7, only=("stem", "stage2.0.project.0"), blocks=())  # few files to export
    with contextlib.suppress(UnreachableError):  # one try on a busy machine may miss the goal
        result = stage.run(original, context)
        macs = [measure(each.module(), original.example, ()).macs for each in (original, result)]
        assert macs[1] < macs[0]
    whole = deployed.best_form(original, context, context.work)  # it is there
    others = [file.parent for file in context.work.glob("*/written.json") if file.parent != whole.path.parent]
    parts = [artifacts.described(json.loads((each / "written.json").read_text()), each).artifact for each in others]
    assert parts and all(part.digest != whole.digest for part in parts)
    smallest = min(parts, key=lambda part: part.path.stat().st_size)  # others lack little
    milliseconds, share = deployed.compare(whole, smallest, context)
    assert 0.01 < milliseconds < 100
    assert share < 0.95  # 0.7 on a quiet machine


def test_what_is_timed_is_int8_where_the_recipe_quantizes(original: Candidate, context: Context) -> None:
    quantizes = dataclasses.replace(context, deployment=Deployment(int8=True))
    for int8, each in ((True, quantizes), (False, context)):
        folder = context.work / str(int8)
        graph = deployed._graph(original, each, _made(folder))
        assert (graph.params is not None) is int8
        form = Artifact(
            path=folder, target="onnxruntime-cpu", dialect="u8" if int8 else "float", precision="float32", inputs=(),
            outputs=(), digest="",
        )  # fmt: skip
        assert deployed._in_form(original, form, each, folder / "000").precision == ("int8" if int8 else "float32")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
