"""Scenes of clothes: which pixel belongs to which kind of garment? Dense labels, a dense output, judged by mean IoU."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import edgesmith
from edgesmith.compressor.learning.precision import computes_bf16

sys.path.insert(0, str(Path(__file__).parents[1] / "fashion_mnist"))
from images import load

SIZE = 56  # pixels of a scene's side
CLASSES = 11  # background and the ten kinds of Fashion-MNIST


def compose(part: str, count: int, seed: int) -> edgesmith.ArraySplit:
    """`count` scenes `(1, 56, 56)` of four garments each, dimmed, overlapping, on a noisy background; and their masks.

    A mask `(56, 56)` says 0 for background, else the kind plus one; the garment on top owns the pixel.
    """
    pixels, labels = load(part)
    rng = np.random.default_rng(seed)
    scenes = rng.normal(0.15, 0.08, (count, SIZE, SIZE)).astype(np.float32)
    masks = np.zeros((count, SIZE, SIZE), np.int64)
    for scene, mask in zip(scenes, masks, strict=True):
        for chosen in rng.integers(0, len(pixels), 4):
            garment, (top, left) = pixels[chosen] / 255, rng.integers(0, SIZE - 27, 2)
            window = np.s_[top : top + 28, left : left + 28]
            covered = garment > 0.1
            scene[window][covered] = garment[covered] * rng.uniform(0.4, 1.0)
            mask[window][covered] = labels[chosen] + 1
    return edgesmith.ArraySplit({"scene": (scenes[:, None] - 0.3) / 0.3}, masks)


def splits() -> dict[str, edgesmith.ArraySplit]:
    """Scenes to train on, to choose on, and, from images no training ever saw, to judge on."""
    train = compose("train", 4_500, seed=0)
    cut = 4_000
    parts = {"train": slice(0, cut), "validation": slice(cut, None)}
    assert train.labels is not None
    found = {
        name: edgesmith.ArraySplit({"scene": train.inputs["scene"][part]}, train.labels[part])
        for name, part in parts.items()
    }
    return found | {"test": compose("t10k", 500, seed=1)}


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """A small U-Net (Ronneberger et al., 2015): scenes `(N, 1, 56, 56)` to logits `(N, 11, 56, 56)`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.top = nn.Sequential(_convolution(1, width), _convolution(width, width))
        self.middle = nn.Sequential(_convolution(width, 2 * width, 2), _convolution(2 * width, 2 * width))
        self.bottom = nn.Sequential(
            _convolution(2 * width, 4 * width, 2),
            _convolution(4 * width, 4 * width),
            _convolution(4 * width, 4 * width),
            _convolution(4 * width, 4 * width),
        )
        self.up_middle = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join_middle = _convolution(4 * width, 2 * width)
        self.up_top = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join_top = _convolution(2 * width, width)
        self.classify = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = self.top(x)
        middle = self.middle(top)
        y = self.up_middle(self.bottom(middle))
        y = self.up_top(self.join_middle(torch.cat([y, middle], 1)))
        return self.classify(self.join_top(torch.cat([y, top], 1)))


def dim(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make the batch darker or brighter. A mask would have to be mirrored with its scene, so nothing moves."""
    scale = 0.8 + 0.4 * torch.rand(len(inputs["scene"]), 1, 1, 1, generator=generator)
    return {"scene": inputs["scene"] * scale}


def train(model: nn.Module, epochs: int = 12) -> None:
    """What the user has done before edgesmith comes in."""
    split = splits()["train"]
    assert split.labels is not None
    scenes, masks = torch.tensor(split.inputs["scene"]), torch.tensor(split.labels)
    batch = 32
    steps = len(scenes) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(0)
    model.train().to(memory_format=torch.channels_last)
    for _ in range(epochs):
        for chosen in torch.randperm(len(scenes), generator=generator)[: steps * batch].split(batch):
            optimizer.zero_grad()
            inputs = dim({"scene": scenes[chosen]}, generator)["scene"].contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16("cpu")):
                logits = model(inputs)
            functional.cross_entropy(logits.float(), masks[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.to(memory_format=torch.contiguous_format)


def task() -> edgesmith.Task:
    """The problem as edgesmith sees it."""
    return edgesmith.Task(
        name="segmentation",
        model=UNet,
        load_weights=train,
        loss="cross-entropy",
        metrics=("miou",),
        outputs=("logits",),
        augment=dim,
        **splits(),
    )
