"""How often a model's answer flips under noise too small to matter."""

import dataclasses

import numpy as np

from ...core.task import Metric
from ...core.values import Interval
from ..metrics.accuracy import paired_drop

NOISE = 0.01  # standard deviation, of the range of each input over the test split
DRAWS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipRate:
    """Share of answers that are no longer the model's own answer without noise; mean over draws and samples."""

    noise: float
    draws: int
    samples: int
    original: float
    final: float
    more: Interval  # final less original, paired; positive is worse


def disturbed(
    inputs: dict[str, np.ndarray], ranges: dict[str, float], indices: np.ndarray, draw: int, seed: int
) -> dict[str, np.ndarray]:
    """A batch with Gaussian noise of `NOISE` times the range in every input that is in `ranges`; clipped nowhere.

    Noise depends on seed, draw and the sample's index alone, so that both models see the same.
    """
    made = dict(inputs)
    for number, (name, span) in enumerate(ranges.items()):
        noise = np.stack(
            [
                np.random.default_rng([seed, number, draw, int(index)]).standard_normal(inputs[name].shape[1:])
                for index in indices
            ]
        )
        made[name] = (inputs[name] + NOISE * span * noise).astype(inputs[name].dtype)
    return made


def flip_rate(original: np.ndarray, final: np.ndarray, draws: int, confidence: float) -> FlipRate:
    """From the share of flipped draws of every sample, `(N,)` of both models."""
    rate = Metric(name="flip rate", scores=lambda output, labels: output, higher_is_better=False, bounds=(0.0, 1.0))
    return FlipRate(
        noise=NOISE,
        draws=draws,
        samples=len(original),
        original=float(original.mean()),
        final=float(final.mean()),
        more=paired_drop(rate, original, final, confidence),
    )
