"""By how much the channels of a product's input are divided, so that INT8 leaves the least noise. Maths only."""

from collections.abc import Sequence

import numpy as np

_SHARES = np.linspace(0.1, 1, 10)  # how much of the burden the weights take; half for most models, says the paper
_SIGMAS = 6.0  # a channel's largest value over its root mean square: outliers are rare


def best_scale(ranges: np.ndarray, weights: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """`s_j = max|X_j| ** a / max|W_j| ** (1 - a)`, equation 4 of Xiao et al., SmoothQuant (ICML 2023), at the best a.

    Args:
        ranges: `(2, channels)`, the smallest and largest value in each channel of the activations.
        weights: `(channels, outputs)` of each product that reads them.

    Returns:
        `(channels,)`, 1 for a channel that is zero on one side: there is nothing to share. And how many times smaller
        the noise is than without a scale, in power.
    """
    ranges = ranges.astype(np.float64)
    largest, rows = np.abs(ranges).max(0), np.max([np.abs(weight).max(1) for weight in weights], axis=0)
    alive = (largest > 0) & (rows > 0)
    largest_alive, rows_alive = np.where(alive, largest, 1.0), np.where(alive, rows, 1.0)
    scales = [np.where(alive, largest_alive**a / rows_alive ** (1 - a), 1.0) for a in _SHARES]
    noises = [noise(scale, ranges, weights) for scale in scales]
    at = int(np.argmin(noises))
    before = noise(np.ones(len(largest)), ranges, weights)
    return scales[at], before / noises[at] if noises[at] else 1.0


def noise(scale: np.ndarray, ranges: np.ndarray, weights: Sequence[np.ndarray]) -> float:
    """Expected noise power of all products' results, from steps that are rounded evenly.

    A step of the activations, one for the whole tensor, is met by every weight of its row; a step of a weight, one for
    each output channel, by the mean square of the channel it multiplies.
    """
    low, high = min(float((ranges[0] / scale).min()), 0.0), max(float((ranges[1] / scale).max()), 0.0)
    scaled = [weight * scale[:, None] for weight in weights]
    squares = (np.abs(ranges).max(0) / _SIGMAS / scale) ** 2
    of_inputs = ((high - low) / 255) ** 2 * sum(float((weight**2).sum()) for weight in scaled)
    of_weights = float(squares.sum()) * sum(float(((np.abs(weight).max(0) / 127) ** 2).sum()) for weight in scaled)
    return (of_inputs + of_weights) / 12
