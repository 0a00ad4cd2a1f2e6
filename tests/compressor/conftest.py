"""A small residual network, really trained on scikit-learn's digits, shared by the tests of this folder."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.export import Export
from edgesmith.compressor.learning import training
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Context, Graph, Machine
from edgesmith.core.task import Task
from edgesmith.exporters.sessions.torch_session import TorchSession
from tests.compressor.int8.depthwise import Digits, train
from tests.examples_at import digits_example

from ..exporters.graphs import Separable


@pytest.fixture(scope="session")
def example() -> ModuleType:
    return digits_example()


@pytest.fixture(scope="session")
def task(example: ModuleType) -> Task:
    """Digits with a network of width 16."""
    return Task(
        name="digits",
        model=functools.partial(example.DigitsNet, 16),
        loss="cross-entropy",
        outputs=("logits",),
        augment=example.shift,
        **example.splits(),
    )


@pytest.fixture(scope="session")
def original(example: ModuleType, task: Task) -> Candidate:
    """The trained network, about 98 % on validation."""
    torch.manual_seed(0)
    module = task.model()
    example.train(module)
    inputs, _ = task.train.batch(np.arange(2))
    return Candidate(
        factory=task.model,
        example={name: torch.tensor(array) for name, array in inputs.items()},
        edits=(),
        weights=state_of(module),
    )


@pytest.fixture(scope="session")
def exported(original: Candidate, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The trained network as a file."""
    return Export(id="e").run(original, make_context(task, tmp_path_factory.mktemp("exported"), {}))


class Linear(nn.Module):
    """The smallest student and teacher there is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


class Depthwise(Separable):
    """For digits, and with ReLU: scaled channels stay scaled behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0] = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        for index, layer in enumerate(self.layers):
            if isinstance(layer, nn.ReLU6):
                self.layers[index] = nn.ReLU()


def unbalance(network: Depthwise) -> None:
    """Scale what goes into the depthwise layers, and their weights against it: the same function, channels 1 to 1000."""
    generator = torch.Generator().manual_seed(1)
    layers: Any = network.layers
    with torch.no_grad():
        for index in (3, 9):
            scale = 2 ** (torch.rand(layers[index].out_channels, generator=generator) * 10 - 5)
            layers[index - 2].weight *= scale
            layers[index - 2].bias *= scale
            layers[index].weight /= scale.reshape(-1, 1, 1, 1)


@pytest.fixture(scope="session")
def unbalanced(example: ModuleType, task: Task) -> tuple[Task, Candidate]:
    """A trained depthwise network, about 92 % on validation, that loses half of it when it is rounded to INT8."""
    torch.manual_seed(0)
    network = Depthwise()
    example.train(network)
    inputs, _ = task.train.batch(np.arange(2))
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        before = network.eval()(tensors["image"])
        unbalance(network)
        torch.testing.assert_close(network(tensors["image"]), before, rtol=1e-4, atol=1e-4)
    candidate = Candidate(factory=Depthwise, example=tensors, edits=(), weights=state_of(network))
    return dataclasses.replace(task, model=Depthwise), candidate


@pytest.fixture(scope="session")
def depthwise(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """A trained depthwise network as a graph."""
    return train(task, tmp_path_factory.mktemp("depthwise") / "model.onnx")


@pytest.fixture
def context(task: Task, original: Candidate, tmp_path: Path) -> Context:
    """A stage's context on the CPU; `named` knows the original."""
    return make_context(task, tmp_path, {"original": original})


def make_context(task: Task, work: Path, named: dict[str, Candidate | Graph], seed: int = 0) -> Context:
    work.mkdir(parents=True, exist_ok=True)
    return Context(
        task=task,
        machine=Machine(seed=seed),
        targets=("onnxruntime-cpu",),
        work=work,
        progress=Progress(),
        named=named.__getitem__,
        where="stages[0] 'stage'",
    )


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the loop may catch it."""


def kill_training(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """From now on the loop saves after every step and dies at step number `at`, counted over all runs.

    Returns:
        The numbers of the steps taken, as they are taken.
    """
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    step, taken = training._Loop._train_step, []

    def counted(loop: training._Loop, indices: np.ndarray) -> torch.Tensor:
        taken.append(len(taken) + 1)
        if taken[-1] == at:
            raise Killed
        return step(loop, indices)

    monkeypatch.setattr(training._Loop, "_train_step", counted)
    return taken


@pytest.fixture
def accuracy(task: Task) -> Callable[[Candidate], float]:
    """Accuracy of a candidate on the validation split."""

    def measure(candidate: Candidate) -> float:
        session = TorchSession(candidate.module(), task.input_specs(), task.outputs)
        return evaluate(session, task.validation, task_metrics(task))["accuracy"]

    return measure
