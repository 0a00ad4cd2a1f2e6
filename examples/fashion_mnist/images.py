"""Fashion-MNIST: 60,000 + 10,000 pictures of ten kinds of clothes (Xiao et al., 2017)."""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import edgesmith

CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_FOLDER = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
_MEAN, _SCALE = 0.286, 0.353  # of the training images
_VALIDATION = 1 / 12  # of the training images


class Images:
    """A split that keeps bytes and gives standardized float32 images `(N, 1, 28, 28)`: a quarter of the memory."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        images = (self._pixels[indices, None].astype(np.float32) / 255 - _MEAN) / _SCALE
        return {"image": images.astype(np.float32)}, self._labels[indices]


def splits() -> dict[str, Images]:
    """55,000 images to train, 5,000 to choose on, 10,000 to judge on."""
    pixels, labels = load("train")
    order = np.random.default_rng(0).permutation(len(pixels))
    cut = round(_VALIDATION * len(pixels))
    chosen = {"validation": order[:cut], "train": order[cut:]}
    return {name: Images(pixels[i], labels[i]) for name, i in chosen.items()} | {"test": Images(*load("t10k"))}


def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(N, 28, 28)` uint8 and labels `(N,)` int64 of "train" or "t10k".

    Raises:
        edgesmith.TaskError: the files are not in the folder; says how to get them.
    """
    folder = Path(os.environ.get("FASHION_MNIST", _FOLDER))
    images, labels = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
    for path in (images, labels):
        if not path.is_file():
            raise edgesmith.TaskError(
                f"Fashion-MNIST: no file {path}; on Debian: apt install dataset-fashion-mnist; elsewhere: download the "
                "four gzip files from github.com/zalandoresearch/fashion-mnist and set FASHION_MNIST to their folder"
            )
    return _read(images, 16).reshape(-1, 28, 28), _read(labels, 8).astype(np.int64)


def augment(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Mirror half of the images and move each by up to two pixels; the border is background."""
    images = inputs["image"]
    count = len(images)
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (2, 2, 2, 2), value=-_MEAN / _SCALE)
    down, right = torch.randint(0, 5, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(28), right + torch.arange(28)
    moved = padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    return {"image": moved[:, None]}


def _read(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header)
