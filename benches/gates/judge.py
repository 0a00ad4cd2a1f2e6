"""The verdict: every limit against its interval. A bound proves, the other bound disproves, else it is unproven."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ...core.errors import RecipeError
from ...core.limits import LimitResult, Limits, Status, Verdict
from ...core.values import Interval
from ..audits.disparity import Disparity
from ..metrics.accuracy import samples_to_settle
from ..metrics.groups import GroupLoss

GROUP_LIMITS = ("class_drop", "slice_drop", "corruption_drop", "disparity")  # on what the mean hides
_PLURALS = {"class": "classes", "slice": "slices"}
_LONGER = "a longer measurement or a quieter machine narrows the interval"
_NAMED = 3  # groups beside the worst that a note names
RANK: dict[Status, int] = {"fail": 0, "unproven": 1, "pass": 2}  # what decides comes first


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideEvidence:
    """What one model costs. None: not measured."""

    file_bytes: int | None = None
    macs: int | None = None
    parameters: int | None = None
    peak_memory: Interval | None = None  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a limit can be judged by; intervals at the limits' confidence. None: not measured."""

    original: SideEvidence
    final: SideEvidence
    drop: Interval | None = None  # original minus final in the main metric's unit, positive is worse
    metric: Interval | None = None  # the main metric of the final model
    samples: int | None = None  # test samples behind `drop` and `metric`
    drop_samples_needed: int | None = None  # `accuracy.samples_needed` for the drop limit; None: no count would do
    metric_samples_needed: int | None = None  # `accuracy.samples_to_settle` for the metric limit
    negative_flips: Interval | None = None  # share of samples that the original has right and the final model has not
    groups: tuple[GroupLoss, ...] = ()  # losses of classes and slices
    corruptions: tuple[GroupLoss, ...] = ()  # losses under corruptions; measured where a limit is set on them
    disparities: tuple[Disparity, ...] = ()  # of classes and of slices
    speedups: Mapping[int, Interval] | None = None  # batch size -> paired speed-up
    latency_ms: Interval | None = None  # median of one batch of the first batch size
    same_file: bool = False  # the final file is the original's, byte for byte, so that no clock can tell them apart
    unmeasured_reason: str = ""  # why what is None was not measured: "no CUDA device"


def check_limits(limits: Limits) -> None:
    """Refuse limits that judge nothing: a pass must never come from an empty list.

    Raises:
        RecipeError: no limit is set, one is not a finite number, or the confidence is out of range.
    """
    names = [field.name for field in dataclasses.fields(limits) if field.name != "confidence"]
    values = {name: getattr(limits, name) for name in names if getattr(limits, name) is not None}
    if not values:
        raise RecipeError(f"limits: nothing is judged; set at least one of {', '.join(names)}")
    for name, value in values.items():
        if not math.isfinite(value):
            raise RecipeError(f"limits.{name}: {value} is not a finite number")
        if name not in ("drop", "metric", *GROUP_LIMITS) and value <= 0:
            raise RecipeError(f"limits.{name}: must be more than 0, got {value}")
    if not 0.5 < limits.confidence < 1:
        raise RecipeError(f"limits.confidence: must lie between 0.5 and 1, got {limits.confidence}; 0.95 is usual")


def judge(limits: Limits, evidence: Evidence, higher_is_better: bool) -> Verdict:
    """Judge every limit that is set, in the order of `Limits`.

    Args:
        limits: the promise.
        evidence: what was measured.
        higher_is_better: direction of the main metric; decides which bound of `metric` counts.

    Raises:
        RecipeError: no limit is set (see `check_limits`).
    """
    check_limits(limits)
    judged = (
        _drop(limits, evidence),
        _metric(limits, evidence, higher_is_better),
        _negative_flips(limits, evidence),
        _groups("class_drop", limits.class_drop, evidence.groups, evidence),
        _groups("slice_drop", limits.slice_drop, evidence.groups, evidence),
        _groups("corruption_drop", limits.corruption_drop, evidence.corruptions, evidence),
        _disparity(limits.disparity, evidence),
        _speedup(limits, evidence),
        _latency(limits, evidence),
        _memory_ratio(limits, evidence),
        _at_most("peak_memory_bytes", limits.peak_memory_bytes, evidence.final.peak_memory, evidence),
        _exact_ratio("file_ratio", limits.file_ratio, evidence, "file_bytes"),
        _at_most("file_bytes", limits.file_bytes, _exactly(evidence.final.file_bytes), evidence),
        _exact_ratio("macs_ratio", limits.macs_ratio, evidence, "macs"),
        _exact_ratio("params_ratio", limits.params_ratio, evidence, "parameters"),
    )
    return Verdict(results=tuple(result for result in judged if result is not None))


def worst_batch(speedups: Mapping[int, Interval]) -> int:
    """The batch size with the smallest speed-up."""
    return min(speedups, key=lambda batch: speedups[batch].value)


def _drop(limits: Limits, evidence: Evidence) -> LimitResult | None:
    result = _at_most("drop", limits.drop, evidence.drop, evidence)
    return _with_samples(result, evidence.samples, evidence.drop_samples_needed)


def _metric(limits: Limits, evidence: Evidence, higher_is_better: bool) -> LimitResult | None:
    bound = _at_least if higher_is_better else _at_most
    result = bound("metric", limits.metric, evidence.metric, evidence)
    return _with_samples(result, evidence.samples, evidence.metric_samples_needed)


def _negative_flips(limits: Limits, evidence: Evidence) -> LimitResult | None:
    if limits.negative_flips is None or evidence.negative_flips is None or evidence.samples is None:
        return _unmeasured("negative_flips", limits.negative_flips, evidence)
    return judge_flips(limits.negative_flips, evidence.negative_flips, evidence.samples)


def judge_flips(limit: float, share: Interval, samples: int) -> LimitResult:
    """The share of `samples` that were right and are wrong."""
    status: Status = "pass" if share.high <= limit else "fail" if share.low > limit else "unproven"
    result = _result("negative_flips", limit, share, status)
    found = _with_samples(result, samples, samples_to_settle(share, limit, samples))
    assert found is not None  # the result is one
    return found


def _groups(name: str, limit: float | None, found: Sequence[GroupLoss], evidence: Evidence) -> LimitResult | None:
    groups = [each for each in found if f"{each.kind}_drop" == name]
    if limit is None or not groups or evidence.drop is None:
        return _at_most(name, limit, None, evidence)
    return judge_groups(name, limit, groups)


def judge_groups(name: str, limit: float, groups: Sequence[GroupLoss]) -> LimitResult:
    """The worst group decides: the one whose status is worst, of those the one that lost most.

    Args:
        name: "class_drop", "slice_drop" or "corruption_drop".
        limit: largest loss of any of them.
        groups: all of that kind, at least one.
    """
    kind = name.removesuffix("_drop")
    judged = [(each, _group(name, limit, each)) for each in groups]
    group, worst = min(judged, key=lambda pair: (RANK[pair[1].status], -(pair[1].measured or 0.0)))
    same = [f"'{each.name}'" for each, result in judged if result.status == worst.status and each is not group]
    note = f"{kind} '{group.name}', the worst of {len(groups)}; {group.samples:,} test samples"
    if worst.status != "pass" and same:
        more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        note += f"; {worst.status} too: {', '.join(same[:_NAMED])}{more}"
    if worst.status == "unproven" and group.drop is not None:
        needed = samples_to_settle(group.drop, limit, group.samples)
        what = "test samples" if kind == "corruption" else f"of that {kind}"
        note += f"; about {needed:,} {what} would settle it" if needed else "; no number would settle it"
    return dataclasses.replace(worst, note=note)


def _disparity(limit: float | None, evidence: Evidence) -> LimitResult | None:
    """The kind of group whose gap grew most decides: classes or slices."""
    if limit is None or not evidence.disparities or evidence.drop is None:
        return _at_most("disparity", limit, None, evidence)
    judged = [(each, _at_most("disparity", limit, each.growth, evidence)) for each in evidence.disparities]
    results = [(each, result) for each, result in judged if result is not None]
    gap, worst = min(results, key=lambda pair: (RANK[pair[1].status], -pair[0].growth.value))
    note = f"of {gap.groups} {_PLURALS[gap.kind]}: best '{gap.best}', worst '{gap.worst}'"
    return dataclasses.replace(worst, note=f"{note}; the smallest has {gap.samples:,} test samples")


def _group(name: str, limit: float, group: GroupLoss) -> LimitResult:
    if group.drop is None:
        return LimitResult(name=name, limit=limit, measured=None, low=None, high=None, status="unproven")
    drop = group.drop
    status: Status = "pass" if drop.high <= limit else "fail" if drop.low > limit else "unproven"
    return _result(name, limit, drop, status)


def _speedup(limits: Limits, evidence: Evidence) -> LimitResult | None:
    """The worst batch size decides: the one whose status is worst, of those the slowest."""
    if limits.speedup is not None and evidence.same_file:
        result = _at_least("speedup", limits.speedup, _exactly(1.0), evidence)
        assert result is not None  # the limit is set
        return dataclasses.replace(result, note="the very file of the original: nothing that was tried is faster")
    if limits.speedup is None or not evidence.speedups:
        return _at_least("speedup", limits.speedup, None, evidence)
    results = []
    for batch, measured in evidence.speedups.items():
        result = _at_least("speedup", limits.speedup, measured, evidence)
        assert result is not None  # the limit is set
        results.append((RANK[result.status], measured.value, batch, result))
    _, _, batch, worst = min(results, key=lambda entry: entry[:3])
    note = f"batch {batch}, the worst of {', '.join(map(str, evidence.speedups))}"
    if len(results) == 1:
        note = f"batch {batch}"
    if worst.status == "unproven":
        note += f"; {_LONGER}"
    return dataclasses.replace(worst, note=note)


def _latency(limits: Limits, evidence: Evidence) -> LimitResult | None:
    result = _at_most("latency_ms", limits.latency_ms, evidence.latency_ms, evidence)
    if result is None or result.measured is None or result.status != "unproven":
        return result
    return dataclasses.replace(result, note=_LONGER)


def _memory_ratio(limits: Limits, evidence: Evidence) -> LimitResult | None:
    original, final = evidence.original.peak_memory, evidence.final.peak_memory
    ratio = None
    if original is not None and final is not None:
        if original.low <= 0:
            small = dataclasses.replace(
                evidence, unmeasured_reason="the original adds too little memory to be told from none"
            )
            return _at_most("peak_memory_ratio", limits.peak_memory_ratio, None, small)
        ratio = Interval(
            value=final.value / original.value, low=final.low / original.high, high=final.high / original.low
        )
    return _at_most("peak_memory_ratio", limits.peak_memory_ratio, ratio, evidence)


def _exact_ratio(name: str, limit: float | None, evidence: Evidence, field: str) -> LimitResult | None:
    original, final = getattr(evidence.original, field), getattr(evidence.final, field)
    ratio = _exactly(final / original) if original and final is not None else None
    return _at_most(name, limit, ratio, evidence)


def _exactly(value: float | None) -> Interval | None:
    return None if value is None else Interval(value=value, low=value, high=value)


def _at_most(name: str, limit: float | None, measured: Interval | None, evidence: Evidence) -> LimitResult | None:
    if limit is None or measured is None:
        return _unmeasured(name, limit, evidence)
    status: Status = "pass" if measured.high <= limit else "fail" if measured.low > limit else "unproven"
    return _result(name, limit, measured, status)


def _at_least(name: str, limit: float | None, measured: Interval | None, evidence: Evidence) -> LimitResult | None:
    if limit is None or measured is None:
        return _unmeasured(name, limit, evidence)
    status: Status = "pass" if measured.low >= limit else "fail" if measured.high < limit else "unproven"
    return _result(name, limit, measured, status)


def _result(name: str, limit: float, measured: Interval, status: Status) -> LimitResult:
    return LimitResult(
        name=name, limit=limit, measured=measured.value, low=measured.low, high=measured.high, status=status
    )


def _unmeasured(name: str, limit: float | None, evidence: Evidence) -> LimitResult | None:
    if limit is None:
        return None
    note = f"not measured: {evidence.unmeasured_reason}" if evidence.unmeasured_reason else "not measured"
    return LimitResult(name=name, limit=limit, measured=None, low=None, high=None, status="unproven", note=note)


def _with_samples(result: LimitResult | None, samples: int | None, needed: int | None) -> LimitResult | None:
    """Say on how many samples a metric was judged, and how many would settle what they do not."""
    if result is None or result.measured is None or samples is None:
        return result
    note = f"{samples:,} test samples"
    if result.status == "unproven":
        if needed is None:
            note += "; the measured value is the limit itself: no number of samples would settle it"
        else:
            note += f"; at least {needed:,} test samples would settle it at this rate of disagreement"
    return dataclasses.replace(result, note=note)
