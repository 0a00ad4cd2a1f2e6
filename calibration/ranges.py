"""How well a range fits the tensor it was found for: what it clips, what it leaves unused, whether it has settled."""

import dataclasses
from collections.abc import Sequence

from .grid import clipped_share, grid_of, unused_share
from .histogram import Histogram

Ends = tuple[float, float]  # low, high

_CLIPPED = 0.01  # share of a tensor's values; the rules here clip some ten-thousandths
_UNUSED = 0.5  # share of the levels: one bit of eight is lost
_MOVED = 0.1  # of the range; a scale a tenth larger costs 0.8 dB


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRange:
    """The range of one activation, on the values it was calibrated with."""

    tensor: str
    rule: str  # the calibrator that gave it; where that was `auto`, the one it took
    low: float
    high: float
    clipped: float  # share of the values that lie outside
    unused: float  # share of the levels that stand for no value: a range blown up by a few, or nearly one-sided
    moved: float | None  # see `moved`; None: one batch cannot tell


def describe(tensor: str, rule: str, seen: Histogram, whole: Ends, halves: Sequence[Ends] | None) -> TensorRange:
    """What can be said of a range.

    Args:
        tensor: its name.
        rule: the calibrator's.
        seen: the values.
        whole: the range.
        halves: what the rule makes of either half of the samples; None: there was one batch only.
    """
    bound = _bound(whole)
    low = -bound if whole[0] < 0 else 0.0
    return TensorRange(
        tensor=tensor,
        rule=rule,
        low=whole[0],
        high=whole[1],
        clipped=clipped_share(seen, *whole),
        unused=unused_share(seen, grid_of(low, bound, 8, True)) if bound else 0.0,
        moved=None if halves is None else moved(whole, halves),
    )


def moved(whole: Ends, halves: Sequence[Ends]) -> float:
    """How far a range found on half of the samples is from that found on all, relative, in the mean of both halves.

    It is what the last doubling of the samples did, and about the most that the next one will do: a mean or a quantile
    moves less with every doubling, the largest value of a tensor with a long tail about as much again.
    """
    bound = _bound(whole)
    return sum(abs(_bound(half) - bound) for half in halves) / len(halves) / bound if bound else 0.0


def notable(found: TensorRange) -> bool:
    """Whether a user should look at it."""
    return found.clipped >= _CLIPPED or found.unused >= _UNUSED or (found.moved or 0.0) >= _MOVED


def warnings(ranges: Sequence[TensorRange]) -> list[str]:
    """What the samples were too few for, or too uneven; one line each, none where nothing is to be said."""
    known = [found for found in ranges if found.moved is not None]
    if ranges and not known:
        said = "all samples came as one batch, which cannot tell whether more would move the ranges; give more batches"
        return [f"warning: {said}"]
    uneasy = [found for found in known if (found.moved or 0.0) >= _MOVED]
    if not uneasy:
        return []
    worst = max(uneasy, key=lambda found: found.moved or 0.0)
    counts = f"{len(uneasy)} of {len(ranges)} differ by {_MOVED:.0%} or more between half of the samples and all"
    most = f"most '{worst.tensor}' by {worst.moved:.0%}"
    return [f"warning: more samples would still move the ranges: {counts}, {most}; give more samples"]


def _bound(ends: Ends) -> float:
    return max(-ends[0], ends[1], 0.0)
