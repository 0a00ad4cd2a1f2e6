"""What a recipe promises against what the last release's did: a gate that lets less through may not loosen unseen."""

from collections.abc import Iterator

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
    at_least = {"speedup"} | ({"metric"} if ours.final.metrics[ours.main_metric].higher_is_better else set())
    for name, old in before.items():
        new = now.get(name)
        if new is None:
            yield f"{name} is gone, it was {old:g}"
        elif new < old if name in at_least else new > old:
            yield f"{name} is {new:g}, it was {old:g}"


def _limits(report: Report) -> dict[str, float]:
    return {each.name: each.limit for each in report.limits}
