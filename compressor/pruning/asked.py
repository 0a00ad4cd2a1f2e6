"""Whether the finished artefact keeps the time that a pruning was asked for.

While pruning, the network is timed as it will be deployed; what then comes of it is measured for the verdict.
"""

from collections.abc import Mapping
from typing import Any

from ...benches.gates.judge import Evidence
from ...core.limits import ASKED, LimitResult
from ...core.values import Artifact, Interval
from ..stage import Context
from . import deployed

_MOST = 1.05  # times what was asked, before it counts as missed


def keep(key: str, asked: float, whole: Artifact, context: Context) -> None:
    """Leave for the verdict what was asked, in a form that it can be held to.

    Args:
        key: "latency_ms", or "latency_ratio", which is of the whole network as deployed. The verdict measures against
            the original, so how long the whole takes beside that is measured now; without an original nothing is left.
        asked: ms, or a share.
        whole: the network before pruning.
    """
    original = context.deployment.bounds.original
    if key == "latency_ms":
        context.for_verdict["asked"] = {"key": key, "value": asked}
    elif original is not None:
        _, share = deployed.compare(original, whole, context)
        context.for_verdict["asked"] = {"key": key, "value": asked, "whole": share}


def held(stage: str, asked: Mapping[str, Any], evidence: Evidence) -> tuple[list[str], list[LimitResult]]:
    """What was asked beside what was got, and a limit that failed where that lies above 1.05 times the ask for sure.

    Args:
        stage: id of the pruning.
        asked: what `keep` left.
    """
    took = evidence.latency_ms
    if took is None or not evidence.speedups:
        return [], []
    key, wanted, one = asked["key"], asked["value"], 1.0  # one: ms of what is asked in
    if key == "latency_ratio":
        speedup = next(iter(evidence.speedups.values()))  # at the first batch size
        original = took.value * speedup.value
        took = Interval(value=took.value, low=original / speedup.high, high=original / speedup.low)
        one = original * asked["whole"]
    got, low, high = (f"{each / one:.3g}" for each in (took.value, took.low, took.high))
    note = f"{key} {wanted:.3g} asked, the finished artefact has {got} ({low} to {high})"
    limit = _MOST * wanted * one
    if took.low <= limit:
        return [note], []
    why = f"stage '{stage}' was asked for {key} = {wanted:.3g}, of which 5 % more is let pass"
    missed = LimitResult(
        name=ASKED, limit=limit, measured=took.value, low=took.low, high=took.high, status="fail", note=why
    )
    return [note], [missed]
