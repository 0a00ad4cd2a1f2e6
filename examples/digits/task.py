"""Handwritten digits (8x8 images that come with scikit-learn) and a small residual network that learns them."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

import edgesmith


class Block(nn.Module):
    """Two convolutions and the residual sum; a strided one projects its input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.project = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.project(x))


class DigitsNet(nn.Module):
    """A residual network of three stages for images `(N, 1, 8, 8)`; returns logits `(N, 10)`."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = self.stage2(self.stage1(x))
        return self.head(x.mean((2, 3)))


def shift(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Move the batch by up to one pixel each way; the border is empty."""
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    padded = functional.pad(inputs["image"], (1, 1, 1, 1))
    return {"image": padded[:, :, down : down + 8, right : right + 8]}


def train(model: nn.Module) -> None:
    """What the user has done before edgesmith comes in: 20 epochs on the training images."""
    split = splits()["train"]
    images, labels = torch.tensor(split.inputs["image"]), torch.tensor(split.labels)
    epochs, batch = 20, 64
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: steps * batch].split(batch):
            optimizer.zero_grad()
            inputs = shift({"image": images[chosen]}, generator)
            functional.cross_entropy(model(inputs["image"]), labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()


def splits() -> dict[str, edgesmith.ArraySplit]:
    """1,797 images: 1,077 to train, 360 to choose on, 360 to judge on."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    x_train, x_val, y_train, y_val = train_test_split(x_train, y_train, test_size=360, random_state=0, stratify=y_train)
    return {
        "train": edgesmith.ArraySplit({"image": x_train}, y_train),
        "validation": edgesmith.ArraySplit({"image": x_val}, y_val),
        "test": edgesmith.ArraySplit({"image": x_test}, y_test),
    }


def task() -> edgesmith.Task:
    """The problem as edgesmith sees it."""
    return edgesmith.Task(
        name="digits",
        model=DigitsNet,
        load_weights=train,
        loss="cross-entropy",
        metrics=("accuracy",),
        outputs=("logits",),
        augment=shift,
        **splits(),
    )
