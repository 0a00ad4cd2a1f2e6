"""Real networks, exported and calibrated once: residual (trained on digits), VGG-style and depthwise-separable."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.core.task import Task
from edgesmith.core.values import QuantParams
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from tests.examples_at import digits_example

from .graphs import Separable, Vgg, calibrate, exported, random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A torch network, the file it was exported to, its canonical graph, its parameters and real inputs."""

    module: nn.Module
    path: Path
    model: onnx.ModelProto
    params: dict[str, QuantParams]
    feed: dict[str, np.ndarray]
    labels: np.ndarray | None = None


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The example's residual network at width 16; `feed` is the test split, calibrated on 256 training images."""
    example = digits_example()
    task = example.task()
    module = _trained(example.DigitsNet, task)
    path = tmp_path_factory.mktemp("digits") / "model.onnx"
    from_torch.export(module, task.test.inputs, task.input_specs(), ("logits",), path)
    model = canonicalise(onnx_file.load(path))
    params = calibrate(model, task.train.batch(np.arange(256))[0])
    return Network(
        module=module, path=path, model=model, params=params, feed=dict(task.test.inputs), labels=task.test.labels
    )


@pytest.fixture(scope="session")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return _network(Vgg, tmp_path_factory)


@pytest.fixture(scope="session")
def separable(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return _network(Separable, tmp_path_factory)


@pytest.fixture(params=["digits", "vgg", "separable"])
def network(request: pytest.FixtureRequest) -> Network:
    """Each of the three."""
    found: Network = request.getfixturevalue(request.param)
    return found


def _trained(network: Callable[[int], nn.Module], task: Task) -> nn.Module:
    """Five epochs, a few seconds: about 97 % on the test split."""
    torch.manual_seed(0)
    module = network(16).train()
    assert task.train is not None
    arrays, labels = task.train.batch(np.arange(len(task.train)))
    images, targets = torch.tensor(arrays["image"]), torch.tensor(labels)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for _ in range(5):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    return module.eval()


def _network(kind: type[nn.Module], factory: pytest.TempPathFactory) -> Network:
    torch.manual_seed(0)
    module, images = kind(), random(96, 3, 8, 8)
    path = factory.mktemp(kind.__name__.lower()) / "model.onnx"
    model = exported(module, images, path)
    return Network(module=module, path=path, model=model, params=calibrate(model, {"x": images}), feed={"x": images})
