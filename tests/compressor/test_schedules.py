"""Whole schedules as plain recipes: prune -> distill -> INT8, interleaved, and prune + distill + QAT in one training."""

import dataclasses
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgesmith.compressor import job, pipeline
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.recipe import check_chain, from_mapping
from edgesmith.compressor.run_directory import Done, RunDirectory
from edgesmith.compressor.stage import Graph
from edgesmith.compressor.structure import measure
from edgesmith.core.task import Task
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

from .int8.results import accuracy_of, file_of

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
SCHEDULES = GUIDE.split("### Schedules\n")[1].split("\n### ")[0]


def run(task: Task, original: Candidate, out: Path, stages: list[dict[str, Any]]) -> tuple[list[Done], Any]:
    """The runner with every stage, but nothing measured: that is the same for every schedule, and takes long."""

    def load(module: nn.Module) -> None:
        module.load_state_dict(dict(original.weights))

    task = dataclasses.replace(task, load_weights=load)
    prepared = job.prepare({"task": "task.py", "stages": stages, "limits": {"drop": 0.1}}, task, out=out)
    directory = RunDirectory(out)
    with directory.open():
        runner = pipeline._Run(prepared, directory, Progress())
        done, last = [runner._load_original()], "original"
        for number, stage in enumerate(prepared.recipe.stages, 1):
            done.append(runner._run_stage(number, stage, last))
            last = stage.id
    return done, runner._values


def macs(candidate: Any) -> int:
    return measure(candidate.module(), candidate.example, ()).macs


def test_interleaved(task: Task, original: Candidate, tmp_path: Path, accuracy: Callable[[Candidate], float]) -> None:
    """A little, and teach, and a little more: every ratio is of what the stage gets, and nothing is done twice."""
    prune, lesson = {"use": "prune", "round_to": 1}, {"use": "distill", "epochs": 2, "learning_rate": 2e-3}
    stages = [
        {**prune, "id": "prune-1", "macs_ratio": 0.6},
        {**lesson, "id": "distill-1"},
        {**prune, "id": "prune-2", "macs_ratio": 0.6},
        {**lesson, "id": "distill-2", "teachers": ["original", "distill-1"]},
        {"use": "export"},
    ]
    done, values = run(task, original, tmp_path / "run", stages)
    sizes = [macs(values[name]) / macs(original) for name in ("prune-1", "distill-1", "prune-2", "distill-2")]
    assert sizes[0] == pytest.approx(0.6, abs=0.03)
    assert sizes[1] == sizes[0]
    assert sizes[2] == pytest.approx(0.6 * sizes[0], abs=0.03)
    assert sizes[3] == sizes[2]
    found = {name: accuracy(values[name]) for name in ("prune-1", "distill-1", "prune-2", "distill-2")}
    assert found["distill-1"] > max(found["prune-1"], 0.93)
    assert found["distill-2"] > max(found["prune-2"], 0.93)
    assert done[4].facts["notes"][0].startswith("taught by original (0.50), distill-1 (0.50), ")
    again, _ = run(task, original, tmp_path / "run", stages)
    assert [step.reused for step in again] == [True] * 6


def test_prune_distill_and_qat_in_one_training(task: Task, original: Candidate, tmp_path: Path) -> None:
    """The pruned network learns from the original, by a loss of the table, while it is INT8 already."""
    stages = [
        {"use": "prune", "macs_ratio": 0.5, "round_to": 1},
        {"use": "qat", "epochs": 4, "learning_rate": 3e-3, "loss": "dkd", "loss_options": {"beta": 2.0}},
    ]
    done, values = run(task, original, tmp_path / "run", stages)
    graph = values["qat"]
    assert isinstance(graph, Graph)
    assert graph.params
    path = file_of(graph, OnnxRuntimeCpu(), tmp_path)
    assert accuracy_of(path, task) > 0.93
    assert path.stat().st_size < 4 * values["prune"].parameters()
    assert done[2].facts["notes"][0].startswith("taught by original, best epoch ")


def recipes() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```", SCHEDULES, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", recipes())
def test_the_guides_schedules_are_recipes(text: str, task: Task) -> None:
    """They chain, and their keys and names exist."""
    recipe = from_mapping({"task": "task.py", "limits": {"drop": 0.01}, **tomllib.loads(text)}, folder=Path())
    check_chain(recipe, "candidate")
    for index, stage in enumerate(recipe.stages):
        stage.check(task, f"stages[{index}]")


def test_the_guide_shows_the_three() -> None:
    uses = [[stage["use"] for stage in tomllib.loads(text)["stages"]] for text in recipes()]
    assert uses == [
        ["prune", "distill", "export", "quantize"],
        ["prune", "distill", "prune", "distill", "export", "quantize"],
        ["prune", "qat"],
    ]
