"""Where a model looks: maps by occlusion (Zeiler & Fergus, ECCV 2014, arXiv:1311.2901), which need no gradients, so
that a file in its runtime can be asked; and how far the maps of two models agree.
"""

import dataclasses
import importlib.util

import numpy as np
import scipy

from ...core.task import ArraySplit
from ...core.values import Interval, Session
from ..metrics.accuracy import predict
from ..timing import intervals

SAMPLES = 32
TOP = 0.1  # share of the features whose overlap is counted
_CELLS = 8  # along the shorter side of an image
_AT_ONCE = 8  # occlusions of a sample that are made together
_BATCH = 32  # inputs in one run of the session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of both models' maps: 1 is equal, a correlation of 0 that of chance; means over samples."""

    samples: int
    left_out: int  # samples for which a map is the same everywhere, so that it has no order
    features: int  # cells of an image, or columns of a table
    top: int  # features whose overlap is counted
    correlation: Interval  # Spearman's
    overlap: Interval  # of the `top` features that matter most, by their absolute value
    worst_sample: int  # index in the test split
    worst_correlation: float


def missing() -> str:
    """Why no map can be made here; empty: one can."""
    if importlib.util.find_spec("captum") is None:
        return 'captum is not installed: pip install "edgesmith[audit]"'
    return ""


def cells(shape: tuple[int, ...], channels_last: bool) -> np.ndarray:
    """The feature that each element of a sample belongs to, `shape` with one channel: a square cell, or a column.

    Args:
        shape: of one sample: `(C, H, W)`, `(H, W, C)` or `(F,)`.
    """
    if len(shape) == 1:
        return np.arange(shape[0])
    height, width = shape[:2] if channels_last else shape[1:]
    side = max(1, min(height, width) // _CELLS)
    rows, columns = np.arange(height) // side, np.arange(width) // side
    grid = rows[:, None] * (columns[-1] + 1) + columns[None, :]
    return np.asarray(grid[:, :, None] if channels_last else grid[None])


def occlusion_maps(
    session: Session, inputs: dict[str, np.ndarray], name: str, output: str, targets: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """How much less sure a model is of a class when a feature takes its mean over the samples, `(N, features)`.

    Captum's feature ablation with the session as its model.

    Args:
        inputs: of the samples, N each.
        name: of the input that is occluded.
        output: scores `(N, C)`.
        targets: class of each sample `(N,)`.
        features: see `cells`.
    """
    import torch
    from captum.attr import FeatureAblation

    others = [each for each in inputs if each != name]

    def forward(occluded: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        feed = {name: occluded.numpy()} | {each: tensor.numpy() for each, tensor in zip(others, rest, strict=True)}
        return torch.tensor(predict(session, ArraySplit(feed), _BATCH)[output])

    found = FeatureAblation(forward).attribute(
        torch.tensor(inputs[name]),
        baselines=torch.tensor(inputs[name].mean(0, keepdims=True)),
        target=torch.tensor(targets),
        additional_forward_args=tuple(torch.tensor(inputs[each]) for each in others) or None,
        feature_mask=torch.tensor(features)[None],
        perturbations_per_eval=_AT_ONCE,
    )
    whole = np.broadcast_to(features, inputs[name].shape[1:]).reshape(-1)
    _, first = np.unique(whole, return_index=True)
    return np.asarray(found.numpy().reshape(len(targets), -1)[:, first])


def agreement(original: np.ndarray, final: np.ndarray, indices: np.ndarray, confidence: float) -> Agreement | None:
    """How far the maps `(N, features)` of two models agree; None where fewer than two samples have both.

    Args:
        indices: of the samples in the test split, `(N,)`.
        confidence: of each bound alone.
    """
    kept = np.flatnonzero((np.ptp(original, 1) > 0) & (np.ptp(final, 1) > 0))
    if len(kept) < 2:
        return None
    count = original.shape[1]
    top = max(1, round(TOP * count))
    correlations = np.array([_correlation(original[i], final[i]) for i in kept])
    overlaps = np.array([len(_top(original[i], top) & _top(final[i], top)) / top for i in kept])
    worst = int(correlations.argmin())
    return Agreement(
        samples=len(kept),
        left_out=len(original) - len(kept),
        features=count,
        top=top,
        correlation=_within(intervals.mean(correlations, confidence), -1.0),
        overlap=_within(intervals.mean(overlaps, confidence), 0.0),
        worst_sample=int(indices[kept[worst]]),
        worst_correlation=float(correlations[worst]),
    )


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    ranks = (scipy.stats.rankdata(each) for each in (first, second))
    return min(1.0, float(np.corrcoef(*ranks)[0, 1]))


def _top(values: np.ndarray, count: int) -> set[int]:
    return set(np.argsort(-np.abs(values), kind="stable")[:count].tolist())


def _within(found: Interval, least: float) -> Interval:
    return Interval(value=found.value, low=max(least, found.low), high=min(1.0, found.high))
