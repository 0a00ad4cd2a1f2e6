"""A small depthwise network, trained on digits, whose channels can be rescaled so that one scale per tensor fails."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.int8 import recover
from edgesmith.compressor.int8.recover_equalize import constants, pairs, rescale
from edgesmith.core.task import Task
from edgesmith.core.values import QuantParams
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.graph.graph_index import replaced
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.sessions import taps

DIALECT = Dialect(
    name="u8",
    activations="u8",
    int32_bias=True,
    pair_after_last=("Conv", "MatMul", "Add", "Concat", "GlobalAveragePool", "AveragePool", "Relu", "Clip"),
)


class Depthwise(nn.Module):
    """Three depthwise-separable blocks of MobileNet (Howard et al., 2017) for images `(N, 1, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(1, 16, 3, 1, 1), *_block(16, 16, 3, 1, 16), *_block(16, 32, 1, 1, 1), *_block(32, 32, 3, 2, 32),
            *_block(32, 48, 1, 1, 1), *_block(48, 48, 3, 1, 48), *_block(48, 48, 1, 1, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _block(inputs: int, outputs: int, size: int, stride: int, groups: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """The canonical graph of the trained network, and the images it is measured with."""

    model: onnx.ModelProto
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.calibration), 32):
            yield {"image": self.calibration[start : start + 32]}

    def accuracy(self, model: onnx.ModelProto) -> float:
        return float((self.logits(model).argmax(1) == self.labels).mean())

    def logits(self, model: onnx.ModelProto) -> np.ndarray:
        from tests.exporters.graphs import run

        return run(model, {"image": self.images})["logits"]

    def int8(self, model: onnx.ModelProto, recovered: Sequence[str] = (), per_tensor: bool = True) -> onnx.ModelProto:
        """The INT8 file, as the stage makes it with min-max ranges."""
        model, _ = recover.before_ranges(recovered, model, self.batches, "cpu", "here")
        params = self.params(model, per_tensor)
        placed = placement.place(model)
        model, _ = recover.after_ranges(recovered, model, placed, params, DIALECT, self.batches, "cpu", "here")
        return qdq.write_qdq(model, params, DIALECT)

    def params(self, model: onnx.ModelProto, per_tensor: bool = True) -> dict[str, QuantParams]:
        placed = placement.place(model)
        seen = taps.observe(model, self.batches(), placement.tensors_to_observe(placed))
        activations = {name: qdq.activation_params(found.low, found.high, "min-max") for name, found in seen.items()}
        return qdq.weight_params(model, placed, per_tensor) | activations


def train(task: Task, path: Path) -> Digits:
    """Eight epochs, some seconds: about 97 % of the 360 validation images."""
    torch.manual_seed(0)
    module = Depthwise().train()
    assert task.train is not None and task.validation is not None
    arrays, labels = task.train.batch(np.arange(len(task.train)))
    images, targets = torch.tensor(arrays["image"]), torch.tensor(labels)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(8):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    from_torch.export(module.eval(), {"image": arrays["image"][:16]}, task.input_specs(), ("logits",), path)
    judged, truth = task.validation.batch(np.arange(len(task.validation)))
    assert truth is not None
    return Digits(
        model=canonicalise(onnx_file.load(path)),
        calibration=arrays["image"][:256],
        images=judged["image"],
        labels=truth,
    )


def rescaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function with channels divided by up to `factor` either way and multiplied again by the next layer."""
    found = pairs(model)
    values, rng = constants(model, found), np.random.default_rng(0)
    for pair in found:
        width = len(values[pair.first.input[2]])
        rescale(pair, factor ** rng.uniform(-1, 1, width), values)
    return replaced(model, values)
