"""Every kind of task through one recipe to a verdict: ``python benches/results/task_kinds.py FOLDER [KIND ...]``.

Scikit-learn's digits (8x8) as each of them: several labels for an image, the angle it was turned by, an embedding,
strips of digits of unequal length, scenes with a class for each pixel, scenes with boxes. A small network is trained
on what the examples' training images give, pruned to 60 % of its parameters, taught by the original, quantized and
held to the limits on images that no training saw; the boxes are quantized alone. Printed is Markdown.
"""

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

import edgesmith
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Machine

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
LOOPS = (0, 6, 8, 9)
CELL, CELLS = 8, 3  # pixels of a cell of a scene with boxes, and cells in a row
COUNTS = {"train": 3000, "validation": 500, "test": 1000}
TEACH: Mapping[str, Any] = {"use": "distill", "epochs": 15, "batch_size": 64, "learning_rate": 2e-3}
Split = edgesmith.ArraySplit
Digits = tuple[np.ndarray, np.ndarray]  # images (N, 8, 8), their digits (N,)


class Net(nn.Module):
    """Three convolutions and what makes the answer of them."""

    def __init__(self, head: Callable[[], nn.Module], stride: int = 2, width: int = 32) -> None:
        super().__init__()
        sizes = ((1, width, 1), (width, 2 * width, stride), (2 * width, 2 * width, 1))
        layers = [(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in sizes]
        self.trunk = nn.Sequential(*(layer for each in layers for layer in each))
        self.head = head()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.trunk(image))
        return answer


class Embedding(nn.Module):
    """A direction `(N, 16)`."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.read(x))


class Boxes(nn.Module):
    """Cells' answers as boxes `(N, cells, 6)`, of one size: corners, score, class."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 13, 1))
        rows, columns = np.divmod(np.arange(CELLS**2), CELLS)
        self.register_buffer("corners", torch.tensor(np.stack([columns, rows], -1) * CELL, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = self.read(x).flatten(2).movedim(1, 2)
        middle = self.corners + CELL * cells[..., 1:3].sigmoid()
        classes = cells[..., 3:].softmax(-1)
        best, which = classes.max(-1, keepdim=True)
        score = cells[..., :1].sigmoid() * best
        return torch.cat([middle - CELL / 2, middle + CELL / 2, score, which.to(score.dtype)], -1)


def digits() -> dict[str, Digits]:
    """Images of each split."""
    found = {}
    for name, split in importlib.import_module("task").splits().items():
        assert isinstance(split, Split)
        assert split.labels is not None
        found[name] = split.inputs["image"][:, 0], split.labels
    return found


def placed(
    part: Digits, count: int, seed: int, size: tuple[int, int]
) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A generator, empty images `(count, 1, *size)`, and places of digits to draw from for each `(count, 9)`."""
    rng = np.random.default_rng(seed)
    return rng, np.zeros((count, 1, *size), np.float32), rng.integers(0, len(part[1]), (count, 9))


def several_labels(part: Digits, count: int, seed: int) -> Split:
    """The digit, even, with a loop: `(N, 12)`."""
    images, kinds = part
    more = np.stack([kinds % 2 == 0, np.isin(kinds, LOOPS)], 1)
    return Split({"image": images[:, None]}, np.concatenate([np.eye(10)[kinds], more], 1).astype(np.float32))


def turned(part: Digits, count: int, seed: int) -> Split:
    """Turned by up to 45 degrees; the label is the angle over 45, `(N, 1)`."""
    rng, images, drawn = placed(part, count, seed, (8, 8))
    angles = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    for image, angle, place in zip(images, angles[:, 0], drawn[:, 0], strict=True):
        image[0] = ndimage.rotate(part[0][place], 45 * angle, reshape=False, order=1)
    return Split({"image": images}, angles)


def single(part: Digits, count: int, seed: int) -> Split:
    return Split({"image": part[0][:, None]}, part[1])


def strips(part: Digits, count: int, seed: int) -> Split:
    """Two to six digits in a row, `(N, 1, 8, 48)`; -100 where there is none."""
    rng, images, drawn = placed(part, count, seed, (8, 48))
    labels = np.where(np.arange(6) < rng.integers(2, 7, (count, 1)), part[1][drawn[:, :6]], -100)
    for position in range(6):
        there = labels[:, position] >= 0
        images[there, 0, :, 8 * position : 8 * position + 8] = part[0][drawn[there, position]]
    return Split({"image": images}, labels)


def pixels(part: Digits, count: int, seed: int) -> Split:
    """Two digits on 16x16; 0 is background, a digit's pixels have its number plus one."""
    rng, images, drawn = placed(part, count, seed, (16, 16))
    labels = np.zeros((count, 16, 16), np.int64)
    for image, label, places in zip(images, labels, drawn, strict=True):
        for place in places[:2]:
            top, left = rng.integers(0, 9, 2)
            window, ink = np.s_[top : top + 8, left : left + 8], part[0][place] > 0.25
            image[0][window][ink], label[window][ink] = part[0][place][ink], part[1][place] + 1
    return Split({"image": images}, labels)


def scenes(part: Digits, count: int, seed: int) -> Split:
    """One or two digits on 24x24, the middles in two cells; labels `(N, 2, 5)`, -1 where there is no second."""
    rng, images, drawn = placed(part, count, seed, (24, 24))
    labels = np.full((count, 2, 5), -1.0, np.float32)
    for image, boxes, places in zip(images, labels, drawn, strict=True):
        for box, place, cell in zip(boxes[: rng.integers(1, 3)], places, rng.permutation(CELLS**2), strict=False):
            middle = np.array([cell % CELLS, cell // CELLS]) * CELL + rng.integers(0, CELL, 2)
            left, top = np.clip(middle - CELL // 2, 0, 24 - CELL)
            image[0, top : top + CELL, left : left + CELL] = np.maximum(
                image[0, top : top + CELL, left : left + CELL], part[0][place]
            )
            box[:] = left, top, left + CELL, top + CELL, part[1][place]
    return Split({"image": images}, labels)


def box_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Is there a digit in a cell; where there is, its middle and its kind."""
    assert isinstance(model, Net)
    assert isinstance(model.head, Boxes)
    cells = model.head.read(model.trunk(images)).flatten(2).movedim(1, 2)
    sample, which = (labels[..., 4] >= 0).nonzero(as_tuple=True)
    boxes = labels[sample, which]
    middle = (boxes[:, :2] + boxes[:, 2:4]) / 2 / CELL
    cell = middle.long().clamp(max=CELLS - 1)
    place = cell[:, 1] * CELLS + cell[:, 0]
    wanted = torch.zeros(cells.shape[:2])
    wanted[sample, place] = 1
    own = cells[sample, place]
    where = functional.l1_loss(own[:, 1:3].sigmoid(), middle - cell)
    kind = functional.cross_entropy(own[:, 3:], boxes[:, 4].long())
    return functional.binary_cross_entropy_with_logits(cells[..., 0], wanted) + where + kind


def contrast(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of two images of a batch, how much more alike those of one digit are (Khosla et al., 2020)."""
    found: torch.Tensor = model(images)
    alike = (found @ found.T / 0.1).fill_diagonal_(-1e4)
    same = (labels[:, None] == labels[None]).float().fill_diagonal_(0)
    each: torch.Tensor = (same * alike.log_softmax(1)).sum(1) / same.sum(1).clamp(min=1)
    return -each.mean()


def plain(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda model, images, labels: loss(model(images), labels)


def trained(split: Split, loss: Callable[..., Any], model: nn.Module, epochs: int = 20) -> None:
    """What the user has done before."""
    assert split.labels is not None
    images, labels = torch.tensor(split.inputs["image"]), torch.tensor(split.labels)
    steps = len(images) // 64
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: steps * 64].reshape(steps, 64):
            optimizer.zero_grad()
            loss(model, images[chosen], labels[chosen]).backward()
            optimizer.step()
            schedule.step()


def pooled(outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, outputs))


def read(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


def row() -> nn.Module:
    """One column of the strip for each digit: `(N, 10, 6)`."""
    return nn.Sequential(nn.AvgPool2d((1, 4)), nn.Flatten(1, 2), nn.Conv1d(64 * 4, 10, 1))


def dense() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(64, 32, 2, 2), nn.ReLU(), nn.Conv2d(32, 11, 3, 1, 1))


BCE = functional.binary_cross_entropy_with_logits
# kind -> (data, network, the user's loss, the task's loss, metrics, most that may be lost of the first)
KINDS: dict[str, tuple[Any, Callable[[], nn.Module], Any, str, tuple[str, ...], float]] = {
    "several labels": (several_labels, pooled(12), plain(BCE), "binary-cross-entropy", ("label-f1", "label-map"), 0.04),
    "a number": (turned, read(64 * 16, 1), plain(functional.l1_loss), "l1", ("mae",), 0.03),
    "an embedding": (single, Embedding, contrast, "mse", ("recall@1",), 0.04),
    "a sequence": (strips, row, plain(functional.cross_entropy), "cross-entropy", ("position-accuracy",), 0.02),
    "pixels": (pixels, dense, plain(functional.cross_entropy), "cross-entropy", ("miou",), 0.04),
    "boxes": (scenes, Boxes, box_loss, "mse", ("box-map50", "box-map"), 0.04),
}


def task_of(kind: str) -> edgesmith.Task:
    """The problem; what a teacher alone teaches has no labels to train on."""
    data, head, own, loss, metrics, _ = KINDS[kind]
    made = {name: data(part, COUNTS[name], seed) for seed, (name, part) in enumerate(digits().items())}
    train = made.pop("train")
    bare = loss == "mse"
    given = {"unlabelled": Split(train.inputs), "calibration": Split(train.inputs)} if bare else {"train": train}
    return edgesmith.Task(
        name=kind.replace(" ", "-"),
        model=functools.partial(Net, head),
        load_weights=functools.partial(trained, train, own),
        loss=loss,
        metrics=metrics,
        outputs=("answer",),
        **given,
        **made,
    )


def recipe_of(kind: str) -> dict[str, Any]:
    before = [] if kind == "boxes" else [{"use": "prune", "params_ratio": 0.6}, TEACH]
    return {
        "task": f"{Path(__file__).name}:task",
        "stages": [*before, {"use": "export"}, {"use": "quantize"}],
        "limits": {"drop": KINDS[kind][-1], "speedup": 1.0, "file_ratio": 0.45},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    torch.set_num_threads(1)
    print("| the answer is | metric | original | compressed | lost (at most, 95 %) | batch 1, 32 | file | verdict |")
    print("|---" * 8 + "|")
    for kind in options.kinds or KINDS:
        out = options.folder / kind.replace(" ", "-")
        report = edgesmith.compress(
            task_of(kind), recipe_of(kind), out=out, machine=Machine(threads=1), progress=Progress()
        )
        assert report.original is not None
        assert report.final is not None
        fast = ", ".join(
            f"{each.speedup.median:.2f}x ({each.speedup.low:.2f} to {each.speedup.high:.2f})" for each in report.latency
        )
        print(
            f"| {kind} | `{report.main_metric}` | {report.original.accuracy:.4f} | {report.final.accuracy:.4f} "
            f"| {report.drop.value:+.4f} ({report.drop.high:+.4f}) | {fast} "
            f"| 1/{report.original.file_bytes / report.final.file_bytes:.1f} | {report.verdict} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
