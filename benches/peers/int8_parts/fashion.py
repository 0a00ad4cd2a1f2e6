"""Networks for Fashion-MNIST: two trained in examples/fashion_mnist, three trained here."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch

from .networks import DenseNet, Vgg, widened

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
CALIBRATION = 512  # training images, the same for every quantizer
_IMAGE = (TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28)),)
_BATCH = 128


def example(name: str, folder: str = "fashion_mnist") -> Any:
    """A module of one of the examples."""
    if str(EXAMPLES / folder) not in sys.path:
        sys.path.insert(0, str(EXAMPLES / folder))
    return importlib.import_module(name)


def network(name: str) -> nn.Module:
    """The architecture with random weights."""
    if name in ("vgg", "densenet"):
        return Vgg() if name == "vgg" else DenseNet()
    if name == "vit":
        from edgesmith.benches.results.recovery_vit import ViT

        return ViT()
    networks = example("networks")
    made: nn.Module = {
        "resnet20": networks.ResNet20,
        "mobilenet": networks.MobileNet,
        "resnet20-wide": lambda: networks.ResNet20(64),
    }[name]()
    return made


def module(name: str, folder: Path) -> nn.Module:
    """The trained network that `prepare` left in `folder`."""
    found = network(name)
    found.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    return found.eval()


def prepare(name: str, folder: Path) -> None:
    """Weights, the float ONNX file and the arrays: `calibration.npz`, `validation.npz` and `test.npz`."""
    splits = example("images").splits()
    trained = _trained(name)
    state = {key: tensor.contiguous() for key, tensor in trained.state_dict().items()}
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    chosen = np.random.default_rng(0).permutation(len(splits["train"]))[:CALIBRATION]
    inputs, _ = splits["train"].batch(chosen)
    np.savez(folder / "calibration.npz", **inputs)
    for part in ("validation", "test"):
        inputs, labels = splits[part].batch(np.arange(len(splits[part])))
        np.savez(folder / f"{part}.npz", labels=labels, **inputs)
    from_torch.export(module(name, folder), inputs, _IMAGE, ("logits",), folder / "model.onnx")


def _trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    found = network(name)
    if name == "vit":
        _train_transformer(found, epochs=8, learning_rate=2e-3)
    elif name in ("vgg", "densenet"):
        _train(found, epochs=2 if name == "vgg" else 8, images=None, learning_rate=0.05)
    elif name == "resnet20-wide":
        narrow = safetensors.torch.load_file(EXAMPLES / "fashion_mnist" / "checkpoints" / "resnet20.safetensors")
        found.load_state_dict(widened(narrow, 4, noise=0.5))
        _train(found, epochs=1, images=6_000, learning_rate=0.02)
    else:
        example("train").load(name, found)
    return found


def _train(found: nn.Module, epochs: int, images: int | None, learning_rate: float) -> None:
    """SGD in one cycle as the example does it, in bfloat16."""
    splits = example("images").splits()
    data = splits["train"] if images is None else _First(splits["train"], images)
    options = argparse.Namespace(batch_size=_BATCH, learning_rate=learning_rate, epochs=epochs, seed=0, bfloat16=True)
    found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch knows it for tensors only
    example("train").train(found, data, splits["validation"], None, options, lambda line: print(line, flush=True))


def _train_transformer(found: nn.Module, epochs: int, learning_rate: float) -> None:
    """AdamW in one cycle, in bfloat16: convolutions learn with SGD, attention hardly does."""
    images = example("images")
    splits = images.splits()
    data, validation = splits["train"], splits["validation"]
    optimizer = torch.optim.AdamW(found.parameters(), learning_rate, weight_decay=0.05)
    steps = len(data) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(1, epochs + 1):
        found.train()
        for chosen in torch.randperm(len(data), generator=generator)[: steps * _BATCH].reshape(steps, _BATCH):
            arrays, labels = data.batch(chosen.numpy())
            batch = images.augment({"image": torch.from_numpy(arrays["image"])}, generator)["image"]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = found(batch)
            torch.autograd.backward(functional.cross_entropy(logits.float(), torch.from_numpy(labels)))
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch} validation {example('train').accuracy(found, validation):.4f}", flush=True)


class _First:
    """The first samples of a split."""

    def __init__(self, split: Any, count: int) -> None:
        self._split, self._count = split, count

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: np.ndarray) -> Any:
        return self._split.batch(indices)
