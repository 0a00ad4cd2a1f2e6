"""neural-compressor as the backend of `quantize`: its ranges, our files; its verdict, checked; its import, unseen."""

import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.int8 import neural_compressor
from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.recipe import check_chain, from_mapping
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core.errors import QuantizationError, RecipeError
from edgesmith.core.task import Task
from edgesmith.exporters.targets.targets import TARGETS

from ..conftest import make_context
from .results import accuracy_of, file_of

BACKEND = "neural-compressor"


@pytest.mark.parametrize("calibrator", ["min-max", "entropy"])
def test_static(
    calibrator: str, original: Candidate, context: Context, task: Task, tmp_path: Path, accuracy: object
) -> None:
    stage = Quantize(id="q", backend="neural-compressor", calibrator=calibrator, samples=256)
    graph = stage.run(original, context)
    for target in TARGETS.values():
        assert accuracy_of(file_of(graph, target, tmp_path), task) >= accuracy(original) - 0.01  # type: ignore[operator]
    assert graph.params is not None
    # Its quantizer for x86 leaves in float what a residual sum adds up; those ranges are ours.
    assert context.notes == [
        "neural-compressor, 256 samples of the 'train' split",
        "ranges found on 256 samples afterwards: conv2d_2, conv2d_4, conv2d_6, conv2d_9, relu_8",
    ]
    theirs = {name for name, found in graph.params.items() if found.origin.startswith("Q/DQ in the file")}
    assert len(theirs) == len(graph.params) - 5
    assert graph.params["relu"].origin.startswith("Q/DQ in the file: uint8, scale 0.0")


def test_its_calibrators_differ(original: Candidate, task: Task, tmp_path: Path) -> None:
    """The keys reach it: entropy cuts off what min-max keeps."""
    graphs = []
    for calibrator in ("min-max", "entropy"):
        context = make_context(task, tmp_path / calibrator, {"original": original})
        stage = Quantize(id="q", backend="neural-compressor", calibrator=calibrator, samples=64)
        graphs.append(stage.run(original, context))
    widest, cut = ([found.high for found in _ranges(graph)] for graph in graphs)
    assert len(widest) == len(cut) and sum(cut) < sum(widest)


def _ranges(graph: Graph) -> list:  # type: ignore[type-arg]  # of QuantParams
    assert graph.params is not None
    return [found for _, found in sorted(graph.params.items()) if "uint8" in found.origin]


def test_autotune_stops_at_the_first_that_is_good_enough(original: Candidate, context: Context) -> None:
    Quantize(id="q", backend="neural-compressor", tolerable_loss=0.02, samples=256).run(original, context)
    said, *_ = context.notes
    assert said.startswith("autotune: the best of 1 trials has accuracy 0.98")
    assert said.endswith(" in float; 2.00% were tolerable")


def test_autotune_returns_a_failure_and_it_is_said(unbalanced: tuple[Task, Candidate], tmp_path: Path) -> None:
    """No configuration holds this network; autotune hands over the best one without a word."""
    task, original = unbalanced
    context = make_context(task, tmp_path / "work", {"original": original})
    graph = Quantize(id="q", backend="neural-compressor", tolerable_loss=0.01, samples=256).run(original, context)
    said, *_ = context.notes
    assert said.startswith("autotune: NO trial stayed within 1.00%; the best of 4 trials has accuracy 0.")
    assert said.endswith(" in float, and is taken all the same")
    assert accuracy_of(file_of(graph, TARGETS["tensorrt"], tmp_path), task) < 0.85


@pytest.mark.parametrize(
    ("metric", "scores", "text"),
    [
        ("accuracy", [0.9, 0.5, 0.891], "autotune: the best of 2 trials has accuracy 0.891, 1.00% off 0.9 in float; 2.00% were tolerable"),
        ("accuracy", [0.9, 0.5, 0.8], "autotune: NO trial stayed within 2.00%; the best of 2 trials has accuracy 0.8, 11.11% off 0.9 in float, and is taken all the same"),
        ("mae", [2.0, 5.0, 2.02], "autotune: the best of 2 trials has mae 2.02, 0.99% off 2 in float; 2.00% were tolerable"),
        ("mae", [2.0, 5.0, 4.0], "autotune: NO trial stayed within 2.00%; the best of 2 trials has mae 4, 50.00% off 2 in float, and is taken all the same"),
    ],
)  # fmt: skip
def test_what_is_said_of_the_trials(metric: str, scores: list[float], text: str) -> None:
    assert neural_compressor._verdict(scores, METRICS[metric], 0.02) == text


def test_a_failure_of_its_own_is_an_error_of_ours(
    original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = neural_compressor.load()

    def fail(*arguments: object, **keys: object) -> None:
        raise AssertionError("no such thing\nand more")

    monkeypatch.setattr(vendor, "quantize", fail)
    with pytest.raises(QuantizationError) as caught:
        Quantize(id="q", backend="neural-compressor", calibrator="min-max").run(original, context)
    assert str(caught.value) == (
        "stages[0] 'stage': neural-compressor failed: AssertionError: no such thing; use backend = 'edgesmith'"
    )


class ReadTwice(nn.Module):
    """A convolution that a batch norm and a sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        nn.init.constant_(self.norm.running_mean, 1.0)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head((x + self.second(self.norm(x).relu())).mean((2, 3)))


def test_a_network_that_it_changes_is_refused_by_its_name(original: Candidate, context: Context) -> None:
    torch.manual_seed(0)
    changed = Candidate(factory=ReadTwice, example=original.example, edits=(), weights=state_of(ReadTwice()))
    with pytest.raises(QuantizationError) as caught:
        Quantize(id="q", backend="neural-compressor", calibrator="min-max", samples=32).run(changed, context)
    assert re.fullmatch(
        r"stages\[0\] 'stage': neural-compressor made another network of it, rounding apart \(it folds batch norms into "
        r"layers that others read too\): output 'logits': the exported file differs from torch by up to [\d.]+ "
        r"\(batch of 1, allowed 0.0001\); use backend = 'edgesmith'",
        str(caught.value),
    )


def test_its_pass_does_not_stay_in_torchs_compiler(original: Candidate, context: Context) -> None:
    settings = importlib.import_module("torch._inductor.config")
    with settings.patch(pre_grad_custom_pass=None):
        Quantize(id="q", backend="neural-compressor", calibrator="min-max", samples=32).run(original, context)
        assert settings.pre_grad_custom_pass is None


# --- what its import does besides

SCRIPT = """
import json, logging, os, sys, warnings
from edgesmith.compressor.int8 import neural_compressor

def state():
    return {
        "home": sorted(os.listdir(os.environ["HOME"])), "environment": dict(os.environ),
        "filters": list(map(str, warnings.filters)), "level": logging.root.level, "handlers": list(map(str, logging.root.handlers)),
    }

before = state()
vendor = neural_compressor.load()
logging.getLogger("INC").error("into a folder that is gone?")
after = state()
print(json.dumps({"loaded": vendor.__name__, "changed": [key for key in before if before[key] != after[key]], "level": logging.root.level}))
"""


def test_its_import_leaves_no_trace(tmp_path: Path) -> None:
    """A fresh process with a home of its own: nothing is written there, nothing is printed, the root logger is as it was."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("LOGLEVEL", "HABANA_LOGS")}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "loaded": "neural_compressor.torch.quantization", "changed": [], "level": logging.WARNING,
    }  # fmt: skip
    assert not (home / ".habana_logs").exists()
    assert list(temporary.glob("edgesmith-*")) == []


# --- refusals


def recipe(*stages: dict[str, object]) -> dict[str, object]:
    return {"task": "t.py", "stages": list(stages), "limits": {"drop": 0.1}}


def test_it_takes_the_torch_model_and_not_a_file(tmp_path: Path) -> None:
    check_chain(from_mapping(recipe({"use": "quantize", "backend": BACKEND}), folder=tmp_path), "candidate")
    with pytest.raises(RecipeError) as caught:
        check_chain(
            from_mapping(recipe({"use": "export"}, {"use": "quantize", "backend": BACKEND}), folder=tmp_path),
            "candidate",
        )
    assert str(caught.value) == (
        "stages[1] 'quantize': quantize takes a candidate, but 'export' gives a graph; put it before the 'export' stage"
    )
    with pytest.raises(RecipeError, match=r"quantize takes a candidate, but the task's model gives a graph$"):
        check_chain(from_mapping(recipe({"use": "quantize", "backend": BACKEND}), folder=tmp_path), "graph")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backend": BACKEND}, "w.calibrator: neural-compressor has min-max and entropy, not 'mse'; or set tolerable_loss, and it tries both"),
        ({"tolerable_loss": 0.01}, "w.tolerable_loss: only backend = 'neural-compressor' tunes"),
    ],
)  # fmt: skip
def test_keys_that_say_nothing_are_refused(keys: dict[str, object], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Quantize(id="q", **keys).check(task, "w")  # type: ignore[arg-type]  # keys of a recipe
    assert str(caught.value) == message


def test_a_missing_package_is_said_with_the_command(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "neural_compressor" else find(name))
    with pytest.raises(RecipeError) as caught:
        Quantize(id="q", backend="neural-compressor", calibrator="min-max").check(task, "stages[0] 'q'")
    assert str(caught.value) == (
        "stages[0] 'q'.backend: neural-compressor is not installed; pip install \"edgesmith[neural-compressor]\""
    )


@pytest.mark.gpu
def test_on_cuda(original: Candidate, context: Context, task: Task, tmp_path: Path) -> None:
    there = dataclasses.replace(context, machine=dataclasses.replace(context.machine, device="cuda"))
    graph = Quantize(id="q", backend="neural-compressor", calibrator="min-max").run(original, there)
    assert accuracy_of(file_of(graph, TARGETS["onnxruntime-cpu"], tmp_path), task) > 0.96
