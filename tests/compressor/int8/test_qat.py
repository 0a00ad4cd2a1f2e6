"""Quantization-aware training: what is handed over is what was trained, and it gets back what rounding afterwards loses."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.export import Export
from edgesmith.compressor.int8.fake_quant import FakeQuantized
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.int8.traced import set_device, set_mode, trace
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Graph, Machine
from edgesmith.core.errors import DataError, ExportError, RecipeError, TaskError
from edgesmith.core.task import Task
from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq_read import Read, read_qdq
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.torch_session import TorchSession
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu
from edgesmith.exporters.targets.targets import TARGETS
from edgesmith.exporters.targets.tensorrt import TensorRT
from tests.exporters.graphs import Separable, Vgg, random

from ..conftest import Killed, kill_training, make_context
from .results import accuracy_of, file_of

FAST: dict[str, Any] = {"id": "q", "epochs": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run of the stage came to, and the fake-quantized network it was."""

    graph: Graph
    network: FakeQuantized
    notes: list[str]
    scores: list[float]  # of the start and of every epoch


def train(stage: QuantizationAwareTraining, candidate: Candidate, task: Task, work: Path) -> Trained:
    """Run the stage and look over its shoulder."""
    context = make_context(task, work, {"original": candidate})
    context = dataclasses.replace(context, progress=Progress(log=work / "log.txt"))
    seen: list[FakeQuantized] = []
    before = candidate.digest()
    lowered = FakeQuantized.lowered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeQuantized, "lowered", lambda network: seen.append(network) or lowered(network))  # type: ignore[func-returns-value]
        graph = stage.run(candidate, context)
    assert candidate.digest() == before, "a stage returns a new value"
    lines = [line for line in (work / "log.txt").read_text().splitlines() if "on validation" in line]
    scores = [float(line.split()[-3]) for line in lines]
    return Trained(graph=graph, network=seen[0], notes=context.notes, scores=scores)


@pytest.fixture(scope="module")
def trained(original: Candidate, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(QuantizationAwareTraining(**FAST), original, task, tmp_path_factory.mktemp("trained"))


# --- what is handed over


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_file_answers_as_the_network_that_was_trained(
    target: str,
    trained: Trained,
    task: Task,
    original: Candidate,
    tmp_path: Path,
    accuracy: Callable[[Candidate], float],
) -> None:
    path = file_of(trained.graph, TARGETS[target], tmp_path)
    split = task.split("validation", "test")
    feed, _ = split.batch(np.arange(len(split)))
    expected = TorchSession(trained.network, task.input_specs(), task.outputs).run(feed)["logits"]
    actual = OnnxRuntimeSession(path).run(feed)["logits"]
    assert (expected.argmax(1) == actual.argmax(1)).mean() >= 0.99
    assert accuracy_of(path, task) >= accuracy(original) - 0.01
    assert accuracy_of(path, task) == pytest.approx(max(trained.scores), abs=0.01)


def test_tensorrt_builds_it(trained: Trained, tmp_path: Path) -> None:
    path = file_of(trained.graph, TensorRT(), tmp_path)
    TensorRT().build(path, tmp_path / "model.engine", _build())
    assert (tmp_path / "model.engine").stat().st_size > 10_000


def _build() -> Any:
    from edgesmith.exporters.engines.engine_options import Build

    return Build(tool="tensorrt-rtx")


def test_the_ledger_hears_of_it(trained: Trained) -> None:
    best = int(np.argmax(trained.scores))
    assert trained.notes == [f"taught by original, best epoch {best} of 2"]


def test_scales_are_those_that_were_trained_with(trained: Trained) -> None:
    """Every FakeQuantize of an activation and its scale, to the last bit, are in the parameters."""
    assert trained.graph.params is not None
    read = {float(found.scale) for found in trained.graph.params.values() if found.axis is None}
    expected = {float(fake.scale) for fake in trained.network._activations}
    assert read == expected
    placed = place(onnx_file.load(trained.graph.path))
    assert {name for name, found in trained.graph.params.items() if found.axis is not None} == set(placed.weights)


def test_a_pruned_network_is_trained_too(original: Candidate, task: Task, tmp_path: Path) -> None:
    """Pruning costs accuracy; training as INT8 gives it back, and the file has the pruned network's size."""
    context = make_context(task, tmp_path / "prune", {"original": original})
    pruned = Prune(id="p", macs_ratio=0.35, round_to=1).run(original, context)
    context = make_context(task, tmp_path / "train", {"original": original})
    graph = QuantizationAwareTraining(id="q", epochs=4, learning_rate=3e-3).run(pruned, context)
    path = file_of(graph, OnnxRuntimeCpu(), tmp_path)
    assert path.stat().st_size < 4 * pruned.parameters()
    session = TorchSession(pruned.module(), task.input_specs(), task.outputs)
    before = evaluate(session, task.split("validation", "test"), task_metrics(task))["accuracy"]
    assert accuracy_of(path, task) > max(before + 0.05, 0.93)


# --- what it is for


def test_it_gets_back_what_rounding_afterwards_loses(unbalanced: tuple[Task, Candidate], tmp_path: Path) -> None:
    """One scale per tensor cannot hold channels of such different sizes; the network learns to live with it."""
    task, original = unbalanced
    context = make_context(task, tmp_path / "afterwards", {"original": original})
    rounded = Quantize(id="q").run(Export(id="e").run(original, context), context)
    stage = QuantizationAwareTraining(id="q", epochs=8, learning_rate=5e-3)
    result = train(stage, original, task, tmp_path)

    session = TorchSession(original.module(), task.input_specs(), task.outputs)
    in_float = evaluate(session, task.split("validation", "test"), task_metrics(task))["accuracy"]
    afterwards = accuracy_of(file_of(rounded, TensorRT(), tmp_path), task)
    during = accuracy_of(file_of(result.graph, TensorRT(), tmp_path), task)
    assert in_float > 0.9
    assert afterwards < in_float - 0.1
    assert during > in_float - 0.1 * (in_float - afterwards)
    # The score that picks the best epoch is that of the network in INT8: the start's is as bad as the rounded one's.
    assert result.scores[0] < in_float - 0.1
    assert max(result.scores) == pytest.approx(during, abs=0.015)


# --- a kill


def test_a_killed_training_ends_with_the_same_values(
    original: Candidate, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after the ranges stand still; moving averages, batch norms and dropout included."""
    stage = QuantizationAwareTraining(id="q", epochs=2, freeze_after=0.5, learning_rate=3e-3)
    candidate = dataclasses.replace(original, factory=lambda: with_dropout(original.factory()))
    monkeypatch.setattr(stage.__class__, "_handed_over", lambda stage, network, value, context: network)  # as it ended

    def run(folder: str) -> dict[str, torch.Tensor]:
        network: Any = stage.run(candidate, make_context(task, tmp_path / folder, {"original": original}))
        return state_of(network)

    whole = run("whole")
    for killed_at in (10, 25):
        taken = kill_training(monkeypatch, killed_at)
        with pytest.raises(Killed):
            run(f"broken-{killed_at}")
        resumed = run(f"broken-{killed_at}")
        assert len(taken) == 33  # it went on, and did one step again
        assert [name for name, tensor in whole.items() if not torch.equal(resumed[name], tensor)] == []
    assert {"graph_module.module.norm.running_var", "graph_module.fake_0.scale"} <= set(whole)


def with_dropout(module: nn.Module) -> nn.Module:
    module.stage1.append(nn.Dropout2d(0.1))  # type: ignore[union-attr, operator]
    return module


# --- fake quantization


def fake(module: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> FakeQuantized:
    images = random(16, *shape)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *shape))
    network = FakeQuantized(trace(module, {"x": images}, (spec,), ("y",)))
    network.calibrate([{"x": torch.tensor(images)}])
    return network


def handed_over(network: FakeQuantized, path: Path, shape: tuple[int, ...] = (3, 8, 8)) -> Read:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *shape))
    from_torch.write(network.lowered(), {"x": random(16, *shape)}, (spec,), ("y",), path)
    return read_qdq(onnx_file.load(path))


class Residual(nn.Module):
    """What placement has rules for, beside Vgg and Separable: sums, concatenation, a shared input, in-place operators."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.right(self.act(self.left(x)))
        y += x
        y = torch.cat([self.act(y), x], 1)
        return self.head(self.drop(y.mean((2, 3))))


@pytest.mark.parametrize("kind", [Vgg, Separable, Residual])
def test_it_stands_where_placement_wants_it_and_computes_what_the_file_computes(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    """No tensor is left to be calibrated, and nothing is trained as INT8 that stays in float."""
    network, images = fake(kind()), random(32, 3, 8, 8, seed=5)
    read = handed_over(network, tmp_path / "model.onnx")
    assert (read.unseen, read.guessed, read.unused) == ((), (), ())
    with torch.no_grad():
        expected = network(torch.tensor(images))[0].numpy()
    actual = OnnxRuntimeSession(tmp_path / "model.onnx").run({"x": images})["y"]
    assert np.abs(expected - actual).max() < 0.05 * np.abs(expected).max()
    assert (expected.argmax(1) == actual.argmax(1)).mean() > 0.9


class Settings(nn.Module):
    """A batch norm and a dropout that are not the defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.3, momentum=0.03)
        self.drop = nn.Dropout(0.15)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(x)))


def test_the_models_own_settings_stay() -> None:
    network = fake(Settings())
    for mode in (True, False, True):
        network.train(mode)
        arguments = {
            str(node.target): node.args[-4 if "norm" in str(node.target) else 1 :]
            for node in network.graph_module.graph.nodes
            if "batch_norm" in str(node.target) or "dropout" in str(node.target)
        }
        assert arguments == {"aten.batch_norm.default": (mode, 0.03, 0.3, False), "aten.dropout.default": (0.15, mode)}


def test_a_training_step_moves_ranges_and_statistics_and_an_evaluation_does_not() -> None:
    network = fake(Settings())
    images = torch.tensor(random(16, 3, 8, 8, seed=2) * 10)

    def state() -> tuple[float, float]:
        kept = network.state_dict()
        return float(network._activations[0].scale), float(kept["graph_module.module.norm.running_var"].mean())

    first = state()
    network.eval()
    network(images)
    assert state() == first
    network.train()
    network(images)
    assert state()[0] > first[0] * 1.05 and state()[1] > first[1] * 1.1
    moved = state()
    network.standing = True
    network.train()
    network(images)
    assert state() == moved


def test_first_ranges_are_the_mean_of_the_batches() -> None:
    network = fake(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    batches = [torch.full((2, 3, 8, 8), value) for value in (1.0, 2.0, 6.0)]
    for made in network._activations:
        made.activation_post_process.reset_min_max_vals()
    network.calibrate([{"x": batch} for batch in batches])
    assert float(network._activations[0].scale) == pytest.approx(3.0 / 127)
    assert float(network._weights[0].scale[1]) == pytest.approx(float(weight(network)[1].abs().max()) / 127)
    weight(network)[1] *= 2
    network(batches[0])
    assert float(network._weights[0].scale[1]) == pytest.approx(float(weight(network)[1].abs().max()) / 127)


def weight(network: FakeQuantized) -> torch.Tensor:
    (found,) = [tensor for name, tensor in network.named_parameters() if name.endswith("weight")]
    return found.detach()


# --- tracing


class Wrote(nn.Module):
    """Reads a tensor that it has written into through another name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        z = y.add_(1.0)
        return torch.cat([y, z.relu_()], 1)


def test_operators_that_write_are_replaced_and_later_readers_see_the_result() -> None:
    images = random(4, 3)
    traced = trace(Wrote(), {"x": images}, (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),), ("y",))
    assert not [node for node in traced.graph.nodes if str(node.target).split(".")[1:2] in (["add_"], ["relu_"])]
    torch.testing.assert_close(traced(torch.tensor(images))[0], Wrote()(torch.tensor(images)))


class Through(nn.Module):
    """Writes through a view and reads what the view is of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.flatten().relu_()
        return y


def test_a_graph_that_computes_something_else_is_refused() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    with pytest.raises(ExportError) as caught:
        trace(Through(), {"x": np.full((4, 3), -1, np.float32)}, (spec,), ("y",))
    assert str(caught.value) == (
        "output 'y': the traced graph differs from the model by up to 2; write what changes tensors in place with new ones"
    )


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_what_torch_cannot_trace_is_said_before_any_work(original: Candidate, context: Context) -> None:
    candidate = Candidate(factory=Branches, example=original.example, edits=(), weights={})
    with pytest.raises(ExportError, match=r"^the model cannot be traced: .*; replace data-dependent control flow in"):
        QuantizationAwareTraining(**FAST).rehearse(candidate, context)


class Makes(nn.Module):
    """Makes a tensor of its own, and holds a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.ones(3, device=x.device) * torch.tensor([1.0, 2.0, 3.0]).to(x.device)


def test_what_the_graph_makes_itself_goes_to_the_device() -> None:
    """On the meta device any tensor left on the CPU is an error, as it would be on CUDA."""
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    traced = trace(Makes(), {"x": random(4, 3)}, (spec,), ("y",))
    set_mode(traced, norms=True, dropouts=True)
    set_device(traced, "meta")
    traced.to("meta")
    assert traced(torch.zeros(4, 3, device="meta"))[0].device.type == "meta"


# --- refusals


def test_a_missing_torchao_is_said_with_the_command(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else find(name))
    with pytest.raises(RecipeError) as caught:
        QuantizationAwareTraining(id="q").check(task, "stages[1] 'q'")
    assert str(caught.value) == ("stages[1] 'q': needs torchao, which is not installed; pip install \"edgesmith[qat]\"")


def test_missing_data_is_refused_before_any_work(task: Task) -> None:
    with pytest.raises(TaskError, match="task 'digits': w: choosing the best epoch needs the 'validation' split"):
        QuantizationAwareTraining(id="q").check(dataclasses.replace(task, validation=None), "w")
    with pytest.raises(TaskError, match="task 'digits': w needs the 'train' split"):
        QuantizationAwareTraining(id="q").check(dataclasses.replace(task, train=None), "w")
    seen = dataclasses.replace(task, calibration=task.test)
    with pytest.raises(DataError, match="calibration data: 360 of 360 samples are also in the test split"):
        QuantizationAwareTraining(id="q").check(seen, "w")


@pytest.mark.gpu
def test_training_on_cuda(original: Candidate, task: Task, tmp_path: Path) -> None:
    context = make_context(task, tmp_path / "cuda", {"original": original})
    context = dataclasses.replace(context, machine=Machine(device="cuda"))
    graph = QuantizationAwareTraining(**FAST).run(original, context)
    assert accuracy_of(file_of(graph, OnnxRuntimeCpu(), tmp_path), task) > 0.96
