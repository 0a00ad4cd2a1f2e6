"""What was tried, as accuracy against latency: stages and forms as points, the front that nothing beats, a chart."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from . import words
from .report import Report

HEIGHT = 300  # of the chart in pixels; across, places are shares of its width, so that text keeps its size on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 14.0, 94.0, 30.0, 262.0  # of what is drawn: shares of the width, pixels
_APART = (9.0, 15.0)  # nearer than that, two numbers would cover each other: share of the width, pixels
_TICKS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """A network that was measured on validation data."""

    number: int  # from 1, in the order of the run
    kind: Literal["original", "stage", "form", "final"]
    label: str
    accuracy: float
    latency_ms: float
    front: bool = False  # nothing else is both as fast and as good, and better in one


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point of the chart: across in percent of the width, down in pixels."""

    x: float
    y: float
    kind: str
    front: bool


@dataclasses.dataclass(frozen=True)
class Text:
    """Words of the chart; `anchor` as SVG's text-anchor."""

    x: float
    y: float
    words: str
    anchor: str = "start"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Everything that is drawn."""

    marks: tuple[Mark, ...]
    numbers: tuple[Text, ...]
    front: tuple[tuple[float, float, float, float], ...]  # x1, y1, x2, y2 of the lines
    across: tuple[Text, ...]  # ticks of the latency
    down: tuple[Text, ...]  # ticks of the metric


def tried(report: Report) -> list[Tried]:
    """Every stage, and every form of the judged file, that has both an accuracy and a latency."""
    last = len(report.stages) - 1
    found: list[Tried] = []
    for index, entry in enumerate(report.stages):
        if entry.latency_ms is not None:
            label = entry.id if entry.id == entry.name else f"{entry.id} ({entry.name})"
            kind: Literal["original", "stage", "final"] = (
                "original" if index == 0 else "final" if index == last else "stage"
            )
            point = Tried(
                number=len(found) + 1, kind=kind, label=label, accuracy=entry.accuracy, latency_ms=entry.latency_ms
            )
            found.append(point)
    for form in next((each.tried for each in report.artifacts if each.target == report.target), ()):
        if form.latency_ms is not None and form.accuracy is not None:
            kept = f", {form.in_float} layer{'s' if form.in_float > 1 else ''} in float" if form.in_float else ""
            label = f"{form.dialect}{kept}{', taken' if form.taken else ''}"
            point = Tried(
                number=len(found) + 1, kind="form", label=label, accuracy=form.accuracy, latency_ms=form.latency_ms
            )
            found.append(point)
    return with_front(found, report.original.metrics[report.main_metric].higher_is_better)


def with_front(points: Sequence[Tried], higher_is_better: bool) -> list[Tried]:
    """The same points, those of the Pareto front marked."""
    sign = 1 if higher_is_better else -1

    def beats(one: Tried, other: Tried) -> bool:
        mine, theirs = (sign * one.accuracy, -one.latency_ms), (sign * other.accuracy, -other.latency_ms)
        return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    return [dataclasses.replace(each, front=not any(beats(other, each) for other in points)) for each in points]


def chart(points: Sequence[Tried], report: Report) -> Chart:
    """Where everything stands: the fast to the left, the good at the top.

    Args:
        points: at least one.
    """
    metric = report.original.metrics[report.main_metric]
    values, times = [each.accuracy for each in points], [each.latency_ms for each in points]
    right = 1.05 * max(times)
    low, high = min(values), max(values)
    pad = 0.1 * (high - low) or 0.005 * (abs(high) or 1.0)
    low, high = low - pad, high + pad
    sign = 1 if metric.higher_is_better else -1

    def x(milliseconds: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * milliseconds / right

    def y(value: float) -> float:
        share = (value - low) / (high - low)
        return _TOP + (_BOTTOM - _TOP) * (1 - share if sign > 0 else share)

    marks = tuple(Mark(x(each.latency_ms), y(each.accuracy), each.kind, each.front) for each in points)
    front = sorted({(mark.x, mark.y) for mark in marks if mark.front})
    return Chart(
        marks=marks,
        numbers=tuple(_numbers(points, marks)),
        front=tuple(_steps(front)),
        across=tuple(Text(x(tick), _BOTTOM + 20, f"{tick:g} ms", "middle") for tick in ticks(0.0, right)),
        down=tuple(
            Text(0.0, y(tick), words.metric_value(metric, tick))
            for tick in ticks(low, high)
            if metric.kind != "proportion" or 0 <= tick <= 1  # the air around the points may be more than all
        ),
    )


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Round numbers from `low` to `high`, `count` or a few less or more: 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 0.43), ticks(0.905, 0.991)
    ([0.0, 0.1, 0.2, 0.3, 0.4], [0.92, 0.94, 0.96, 0.98])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _steps(front: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float, float, float]]:
    """From each point of the front along to the time of the next, then up to it."""
    for (x1, y1), (x2, y2) in itertools.pairwise(front):
        yield x1, y1, x2, y1
        yield x2, y1, x2, y2


def _numbers(points: Sequence[Tried], marks: Sequence[Mark]) -> Iterator[Text]:
    """A number over each point, one text for those that lie together."""
    groups: list[list[int]] = []
    for index, mark in enumerate(marks):
        near = (each for each in groups if _together(marks[each[0]], mark))
        group = next(near, None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    for group in groups:
        mark, text = marks[group[0]], ", ".join(str(points[index].number) for index in group)
        yield Text(mark.x, mark.y, text, "end" if mark.x > 90 else "middle")


def _together(one: Mark, other: Mark) -> bool:
    return abs(one.x - other.x) < _APART[0] and abs(one.y - other.y) < _APART[1]
