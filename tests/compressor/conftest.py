"""A small residual network, really trained on scikit-learn's digits, shared by the tests of this folder."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Context, Graph, Machine
from edgesmith.core.task import Task
from edgesmith.exporters.torch_session import TorchSession
from tests.compressor.depthwise import Digits, train

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def load_example() -> ModuleType:
    """The example's task module, without running a recipe."""
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE / "task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def example() -> ModuleType:
    return load_example()


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


@pytest.fixture
def accuracy(task: Task) -> Callable[[Candidate], float]:
    """Accuracy of a candidate on the validation split."""

    def measure(candidate: Candidate) -> float:
        session = TorchSession(candidate.module(), task.input_specs(), task.outputs)
        return evaluate(session, task.validation, task_metrics(task))["accuracy"]

    return measure
