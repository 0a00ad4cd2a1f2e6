"""What quantizing one file came to: layer by layer, and as a whole."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ...calibration.ranges import TensorRange
from ...core.values import Interval
from ..metrics.closeness import Closeness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """A changed file against the original on the same runs."""

    outputs: tuple[Closeness, ...]
    snr_db: float  # the worst output's
    drop: Interval | None  # of the metric, or share of changed answers; None: neither is asked for
    original: float | None = None  # the metric, where there are labels
    changed: float | None = None
    unread_db: float | None = None  # the worst of the outputs that the metric does not read; None: it reads them all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """A layer that could run in INT8, and what became of it."""

    node: str
    operator: str
    int8: bool
    why: str = ""  # why it stays in float
    alone_db: float | None = None  # signal-to-noise ratio of the outputs when it alone runs in INT8; None: not tried
    float_ms: float | None = None  # of its kernels in the float file; None: not timed
    int8_ms: float | None = None  # of those in the INT8 file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One INT8 form of a network that was tried on the way to its file, on validation data."""

    dialect: str
    in_float: int  # layers that it leaves in float
    accuracy: float | None  # main metric; None: there are no labels
    snr_db: float  # of the worst output against the network in float
    latency_ms: float | None  # median at the first batch size; None: not good enough to be timed, or no runtime
    taken: bool  # it is the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """The outcome. Without `out` nothing was written, and `reason` says why."""

    model: str
    target: str
    status: Literal["written", "refused", "unproven"]  # unproven: written, but not everything could be proven here
    reason: str
    out: str | None
    dialect: str
    metric: str | None  # None: there are no labels
    quality: Quality | None  # on runs that nothing was chosen with
    speedup: Interval | None
    original_ms: float | None
    final_ms: float | None
    original_bytes: int
    final_bytes: int | None
    runs: Mapping[str, int]  # how many calibrated, chose and judged
    decisions: tuple[Decision, ...] = ()
    tried: tuple[str, ...] = ()  # every form that was tried, and what came of it
    notes: tuple[str, ...] = ()  # what was done to the weights before, and what calibration has to say
    ranges: tuple[TensorRange, ...] = ()  # of the activations that were calibrated


def describe(quality: Quality) -> str:
    """A file's quality in a few words.

    >>> describe(Quality(outputs=(), snr_db=31.25, drop=None))
    '31.2 dB'
    """
    if quality.drop is None:
        return f"{quality.snr_db:.1f} dB"
    if quality.original is None:
        return f"{100 * quality.drop.value:.2f} % of the answers changed"
    others = "" if quality.unread_db is None else f", other outputs {quality.unread_db:.1f} dB"
    return f"{quality.original:.4f} became {quality.changed:.4f}{others}"
