"""What a recipe promises against what the last release's did: a gate that lets less through may not loosen unseen."""

from collections.abc import Iterator

from ...core.limits import ASKED
from ..report.report import Report
from .gate_check import Check

NAME = "limits"  # of the check


def loosened(ours: Report, theirs: Report) -> Check | None:
    """A check that says which limits of the last release are gone or looser; None: none is.

    It is passed, since limits are the recipe's to set; whoever reads the gate has to know that they were.
    """
    said = list(_loosened(ours, theirs))
    if not said:
        return None
    return Check(
        group="baseline",
        name=NAME,
        status="pass",
        promise="the limits of the last release",
        found="; ".join(said),
        note="the recipe promises less than before",
    )


def tighter(ours: Report, theirs: Report, name: str) -> float | None:
    """The tighter limit of both on a loss; None: neither has one."""
    found = [limit for report in (ours, theirs) if (limit := _limits(report).get(name)) is not None]
    return min(found, default=None)


def _loosened(ours: Report, theirs: Report) -> Iterator[str]:
    now, before = _limits(ours), _limits(theirs)
    if ours.confidence < theirs.confidence:
        yield f"confidence is {ours.confidence:g}, it was {theirs.confidence:g}"
    at_least = {"speedup"} | ({"metric"} if ours.final.metrics[ours.main_metric].higher_is_better else set())
    for name, old in before.items():
        new = now.get(name)
        if new is None:
            yield f"{name} is gone, it was {_number(old)}"
        elif new < old if name in at_least else new > old:
            yield f"{name} is {_number(new)}, it was {_number(old)}"


def _limits(report: Report) -> dict[str, float]:
    """Those of the recipe: what a stage was asked for stands among them only where it was missed."""
    return {each.name: each.limit for each in report.limits if each.name != ASKED}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
