"""What compression changed that the mean hides, as values and as `audit.json` (documented in docs/report-schema.md)."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pydantic

from ...core.errors import ArtifactError
from ...core.limits import LimitResult, Limits, Verdict
from ...core.values import Interval
from ..gates.judge import GROUP_LIMITS, Evidence, SideEvidence, judge
from ..metrics.groups import GroupLoss
from ..report.report import Report
from ..timing.environment import Description
from .attribution import Agreement
from .disparity import Disparity
from .perturbation import FlipRate

AUDIT = "audit.json"
NOT_ASKED = "not asked for; `edgesmith audit` measures it"
SCHEMA: Literal["edgesmith.audit/1"] = "edgesmith.audit/1"


SEVERITIES = (1, 3, 5)  # of every corruption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Original against final on the test split, in the target's runtime. What is empty or None was not measured."""

    task: str
    target: str
    against: str
    confidence: float  # of each bound alone, in every interval here
    main_metric: str
    original_digest: str  # of the two files
    final_digest: str
    test_digest: str  # of the test split, as in the report
    groups: tuple[GroupLoss, ...]  # classes and slices
    disparities: tuple[Disparity, ...]
    severities: tuple[int, ...]
    corruptions: tuple[GroupLoss, ...]  # by name and severity: "brightness 5"
    perturbation: FlipRate | None
    attribution: Agreement | None
    not_measured: dict[str, str]  # corruptions, disparities, perturbation, attribution -> why
    limits: tuple[LimitResult, ...]  # those on what the mean hides
    environment: Description
    schema: Literal["edgesmith.audit/1"] = SCHEMA

    @property
    def verdict(self) -> Verdict:
        return Verdict(results=self.limits)


def judged(audit: Audit, limits: Limits, drop: Interval, higher_is_better: bool, reason: str = "") -> Audit:
    """The audit held to those of the limits that are on what the mean hides.

    Args:
        drop: what the main metric lost on the test split as it is.
        reason: why the target cannot be measured here; empty: it can.
    """
    kept = {name: getattr(limits, name) for name in GROUP_LIMITS if getattr(limits, name) is not None}
    if not kept:
        return audit
    evidence = Evidence(
        original=SideEvidence(),
        final=SideEvidence(),
        drop=None if reason else drop,
        groups=audit.groups,
        corruptions=audit.corruptions,
        disparities=audit.disparities,
        unmeasured_reason=reason,
    )
    found = judge(Limits(**kept, confidence=limits.confidence), evidence, higher_is_better)
    why = {"corruption_drop": audit.not_measured.get("corruptions"), "disparity": audit.not_measured.get("disparities")}
    results = tuple(
        dataclasses.replace(each, note=f"not measured: {why[each.name]}")
        if each.measured is None and why.get(each.name)
        else each
        for each in found.results
    )
    return dataclasses.replace(audit, limits=results)


def to_json(audit: Audit) -> str:
    """The text of `audit.json`; `schema` stands first."""
    tree = dataclasses.asdict(audit)
    return json.dumps({"schema": tree.pop("schema"), **tree}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: str, source: str = AUDIT) -> Audit:
    """Read an audit back.

    Raises:
        ArtifactError: not JSON, another schema, or a field that is missing or of the wrong type.
    """
    try:
        return _READER.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ArtifactError(f"{source}: not an audit of schema '{SCHEMA}': {where}: {first['msg']}") from error


def kept(folder: Path, report: Report) -> Audit | None:
    """The audit in a run directory, if it is of the files that the report speaks of.

    One that is of other files or cannot be read says nothing of this run: None.
    """
    try:
        found = from_json((folder / AUDIT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ArtifactError):
        return None
    final = next(each.digest for each in report.artifacts if each.target == report.target)
    same = (report.task, report.target, report.against, report.confidence, report.test_digest, final)
    theirs = (found.task, found.target, found.against, found.confidence, found.test_digest, found.final_digest)
    return found if theirs == same else None


def of_limits(report: Report, evidence: Evidence, original_digest: str, before: Audit | None) -> Audit:
    """What a run measured because its limits ask for it; the rest is what was found of the same files before."""
    if before is None or before.original_digest != original_digest:
        before = None
    rest = ("corruptions", "disparities", "perturbation", "attribution")
    why = dict.fromkeys(rest, report.unmeasured_reason or NOT_ASKED) if before is None else dict(before.not_measured)
    corruptions = evidence.corruptions or (() if before is None else before.corruptions)
    gaps = evidence.disparities or (() if before is None else before.disparities)
    found = {"corruptions": corruptions, "disparities": gaps}
    return Audit(
        task=report.task,
        target=report.target,
        against=report.against,
        confidence=report.confidence,
        main_metric=report.main_metric,
        original_digest=original_digest,
        final_digest=next(each.digest for each in report.artifacts if each.target == report.target),
        test_digest=report.test_digest,
        groups=report.groups,
        severities=SEVERITIES,
        corruptions=corruptions,
        disparities=gaps,
        perturbation=None if before is None else before.perturbation,
        attribution=None if before is None else before.attribution,
        not_measured={name: text for name, text in why.items() if not found.get(name)},
        limits=(),
        environment=report.environment,
    )


_READER: pydantic.TypeAdapter[Audit] = pydantic.TypeAdapter(Audit)
