"""Common corruptions of images, each on one screen: those of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019,
arXiv:1903.12261) that need numpy and scipy only, with the sizes of the authors' code. Photographs of frost, JPEG files
and the like are left out.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import scipy

from ...core.values import TensorSpec

_CIFAR_SIDE = 32  # pixels of the images that the authors chose the sizes for
_SMALLEST_SIDE = 4
_CHANNELS = (1, 3, 4)

Function = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
    """`function` takes an image `(C, H, W)` of values from 0 to 1, a size and a generator; its result is clipped."""

    function: Function
    sizes: tuple[float, float, float, float, float]  # of the severities 1 to 5
    unit: str  # what the sizes are of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """How an input holds images: the order of its axes, and the range of each channel, `(C, 1, 1)`."""

    channels_last: bool
    low: np.ndarray
    high: np.ndarray


def gaussian_noise(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """A dim sensor: noise of standard deviation `size` in every value."""
    return image + size * rng.standard_normal(image.shape)


def shot_noise(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Few photons: counts with a mean of `size` at the brightest value."""
    return rng.poisson(image * size) / size


def impulse_noise(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: a share of `size` of the values becomes 0 or 1."""
    struck, values = rng.random(image.shape) < size, rng.integers(0, 2, image.shape)
    return np.where(struck, values, image)


def gaussian_blur(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """A lens out of focus: a deviation of `size` pixels; images larger than CIFAR's are blurred in proportion."""
    sigma = size * max(1.0, min(image.shape[1:]) / _CIFAR_SIDE)
    return np.asarray(scipy.ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest"))


def pixelate(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Too few pixels: each side is cut into `size` times as many cells, and a cell has the mean of its pixels."""
    rows, columns = (_cell_means(side, max(1, int(size * side))) for side in image.shape[1:])
    return np.asarray(rows @ image @ columns.T)


def contrast(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Flat light: every channel shrinks to `size` of its distance from its mean."""
    mean = image.mean((1, 2), keepdims=True)
    return np.asarray(mean + size * (image - mean))


def brightness(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Too much light: `size` is added to every channel (the authors add it to the value of HSV)."""
    return image + size


def _cell_means(side: int, cells: int) -> np.ndarray:
    """The matrix `(side, side)` that replaces each pixel of a line by the mean of its cell."""
    cell = np.arange(side) * cells // side
    same = cell[:, None] == cell[None, :]
    return np.asarray(same / same.sum(1, keepdims=True))


# A size of 0 to 1 is of the input's range over the test split, channel by channel.
CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian-noise": Corruption(function=gaussian_noise, sizes=(0.04, 0.06, 0.08, 0.09, 0.10), unit="of the range"),
    "shot-noise": Corruption(function=shot_noise, sizes=(500, 250, 100, 75, 50), unit="photons at the brightest value"),
    "impulse-noise": Corruption(function=impulse_noise, sizes=(0.01, 0.02, 0.03, 0.05, 0.07), unit="of the values"),
    "gaussian-blur": Corruption(function=gaussian_blur, sizes=(0.4, 0.6, 0.7, 0.8, 1.0), unit="pixels of 32"),
    "pixelate": Corruption(function=pixelate, sizes=(0.95, 0.9, 0.85, 0.75, 0.65), unit="of the pixels of a side"),
    "contrast": Corruption(function=contrast, sizes=(0.75, 0.5, 0.4, 0.3, 0.15), unit="of the contrast is left"),
    "brightness": Corruption(function=brightness, sizes=(0.05, 0.1, 0.15, 0.2, 0.3), unit="of the range"),
}


def image_like(spec: TensorSpec) -> bool:
    """Whether an input can hold images: float, four axes, two of them at least four long."""
    if np.dtype(spec.dtype).kind != "f" or len(spec.shape) != 4:
        return False
    sides = spec.shape[1:3] if channels_last(spec.shape) else spec.shape[2:]
    return all(isinstance(side, str) or side >= _SMALLEST_SIDE for side in sides)


def channels_last(shape: tuple[int | str, ...]) -> bool:
    """Whether images of a shape `(N, ?, ?, ?)` have their channels on the last axis."""
    return shape[-1] in _CHANNELS and shape[1] not in _CHANNELS


def images_of(spec: TensorSpec, batches: Iterable[np.ndarray]) -> Images:
    """Axes and range of an input that is `image_like`, from all of its data in batches `(N, ...)`."""
    last = channels_last(spec.shape)
    axes = (0, 1, 2) if last else (0, 2, 3)
    ends = [(batch.min(axes), batch.max(axes)) for batch in batches]
    low, high = np.min([low for low, _ in ends], 0), np.max([high for _, high in ends], 0)
    return Images(channels_last=last, low=low[:, None, None], high=high[:, None, None])


def corrupt(name: str, batch: np.ndarray, indices: np.ndarray, severity: int, images: Images, seed: int) -> np.ndarray:
    """A batch of an input as a corruption leaves it; shape and type stay, severity 0 changes nothing.

    Every sample has randomness of its own, which depends on seed, name and its index alone: not on the batch it is in,
    so that both models see the same, and not on the severity, so that more of it is more of the same noise.

    Args:
        name: in `CORRUPTIONS`.
        batch: `(N, C, H, W)`, or `(N, H, W, C)` where `images` says so.
        indices: of the samples in their split, `(N,)`.
        severity: 0 to 5.
    """
    if severity == 0:
        return batch
    chosen, width = CORRUPTIONS[name], np.where(images.high > images.low, images.high - images.low, 1.0)
    size, made = chosen.sizes[severity - 1], []
    for sample, index in zip(batch, indices, strict=True):
        image = np.moveaxis(sample, -1, 0) if images.channels_last else sample
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), int(index)])
        scaled = np.clip((image.astype(np.float64) - images.low) / width, 0, 1)
        changed = images.low + width * np.clip(chosen.function(scaled, size, rng), 0, 1)
        made.append(np.moveaxis(changed, 0, -1) if images.channels_last else changed)
    return np.stack(made).astype(batch.dtype)
