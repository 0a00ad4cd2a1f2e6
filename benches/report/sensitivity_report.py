"""What `edgesmith sensitivity` found: what each group and block is worth, in the task's metric and in time."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.text import Text

from . import words
from .pages import page
from .terminal import add_row, new_table

_WIDTH, _HEIGHT = 100.0, 60.0  # of a chart, in its own units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """The network with one group narrower, or without one block; nothing is trained."""

    share: float  # of the group's channels that are left; 0: the block is gone
    channels: int
    metric: float  # main metric on validation samples, batch norms estimated anew
    latency_ratio: float | None  # time as deployed over the whole network's; None: the target is not here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One group of coupled channels, or one block."""

    name: str  # root layer of a group, name of a block
    kind: str  # "group" or "block"
    channels: int  # of the whole group; 0 for a block
    points: tuple[Point, ...]  # from the widest to the narrowest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All of a network."""

    task: str
    target: str
    metric: str
    higher_is_better: bool
    whole: float  # the main metric of the whole network
    samples: int  # of the validation split
    batch: int  # at which it was timed
    threads: int
    int8: bool
    curves: tuple[Curve, ...]
    not_pruned: dict[str, str]  # root -> why it cannot be
    unmeasured: str  # why no time was measured; empty: it was

    def loss(self, point: Point) -> float:
        """What the metric is worse by."""
        return (self.whole - point.metric) * (1 if self.higher_is_better else -1)


def print_sensitivity(found: Sensitivity, console: Console) -> None:
    """A line for each point, the group or block that costs least for its time first."""
    table = new_table(
        f"{found.task} on {found.target}: one group or block at a time, nothing trained",
        "taken from",
        "left",
        f"loss of {found.metric}",
        "time left",
    )
    for curve in sorted(found.curves, key=lambda curve: -_gain(found, curve)):
        for number, point in enumerate(curve.points):
            add_row(
                table, curve.name if number == 0 else "", _left(curve, point), f"{found.loss(point):.4f}", _time(point)
            )
    console.print(table)
    for root, why in found.not_pruned.items():
        console.print(Text(f"not pruned: {root}: {why}"))
    if found.unmeasured:
        console.print(Text(f"no time was measured: {found.unmeasured}"))


def render_html(found: Sensitivity) -> str:
    """One page, no network and no script: a chart for each group and block."""
    worst = max((found.loss(point) for curve in found.curves for point in curve.points), default=0.0)
    return page(
        "sensitivity.html",
        found=found,
        charts=[_chart(found, curve, max(worst, 1e-9)) for curve in found.curves],
        whole=f"{found.whole:.4f}",
        words=words,
    )


def _chart(found: Sensitivity, curve: Curve, worst: float) -> dict[str, Any]:
    """Lines from the whole network (left) to what is left least of (right): loss and time saved, both upwards."""
    shares = [0.0, *(1 - point.share for point in curve.points)]
    losses = [0.0, *(max(0.0, found.loss(point)) / worst for point in curve.points)]
    saved = [0.0, *(1 - (point.latency_ratio or 1.0) for point in curve.points)]
    return {
        "name": curve.name,
        "size": f"{curve.channels} channels" if curve.channels else "block",
        "loss": _line(shares, losses),
        "saved": _line(shares, saved),
        "rows": [(_left(curve, point), f"{found.loss(point):.4f}", _time(point)) for point in curve.points],
    }


def _line(across: list[float], up: list[float]) -> str:
    points = ((_WIDTH * x, _HEIGHT * (1 - min(max(y, 0.0), 1.0))) for x, y in zip(across, up, strict=True))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _left(curve: Curve, point: Point) -> str:
    return f"{point.channels} of {curve.channels}" if curve.channels else "without it"


def _time(point: Point) -> str:
    return "not measured" if point.latency_ratio is None else words.percent(point.latency_ratio)


def _gain(found: Sensitivity, curve: Curve) -> float:
    """Time saved for what is lost, at its best point."""
    return max((1 - (point.latency_ratio or 1.0)) / max(found.loss(point), 1e-3) for point in curve.points)
