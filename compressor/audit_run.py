"""A finished run, opened again and audited in its own directory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..benches.audits.audit import AUDIT, SEVERITIES, Audit, judged, kept, of_limits, to_json
from ..benches.audits.disparity import disparities
from ..benches.gates.judge import Evidence
from ..benches.report import html_report
from ..benches.report.report import Report
from ..core.files import storage_errors, write_atomic
from ..core.limits import Limits
from . import auditing
from .auditing import Once
from .opened_run import Opened
from .progress import Progress
from .run_directory import RunDirectory


def audit_run(opened: Opened, limits: Mapping[str, float], progress: Progress) -> Audit:
    """Audit a finished run; writes `audit.json` beside its report, and the report's page anew.

    What an interrupted audit has measured is not measured again.

    Args:
        limits: on what the mean hides, by their names in a recipe; they take the place of the recipe's.
    """
    folder, report, metric = opened.run.path.parent, opened.run.report, opened.metric
    directory = RunDirectory(folder)
    with storage_errors(folder), directory.open():
        progress = progress.logged(folder / "log.txt")
        found = measured(opened, directory.once, progress)
        given: dict[str, Any] = dict(limits)
        wanted = dataclasses.replace(opened.recipe.limits, **given)
        found = judged(found, wanted, report.drop, metric.higher_is_better, report.unmeasured_reason)
        write_atomic(folder / AUDIT, to_json(found))
        html_report.write(folder, report, found)
        progress.record(f"audit: {found.verdict.status if found.limits else 'no limit is set'}")
    return found


def after_run(
    folder: Path, report: Report, evidence: Evidence, original_digest: str, limits: Limits, higher_is_better: bool
) -> Audit | None:
    """The audit of a run that has just reached its verdict: what its limits asked for, and what was found before.

    Writes `audit.json` where a limit asks for it; one of other files is removed.
    """
    before = kept(folder, report)
    if before is None:
        (folder / AUDIT).unlink(missing_ok=True)
    if limits.corruption_drop is None and limits.disparity is None:
        return before
    found = of_limits(report, evidence, original_digest, before)
    found = judged(found, limits, report.drop, higher_is_better, report.unmeasured_reason)
    write_atomic(folder / AUDIT, to_json(found))
    return found


def measured(opened: Opened, once: Once, progress: Progress) -> Audit:
    """Every measurement that task and machine allow, and why the others are missing."""
    run, pair, metric = opened.run, opened.pair, opened.metric
    assert run.arrays is not None  # `open_run` has looked
    confidence, labels = run.report.confidence, run.arrays["labels"]
    before, after = (run.scores(metric, side) for side in ("original", "final"))
    why = {
        "corruptions": auditing.no_corruptions(pair.task),
        "perturbation": auditing.no_flips(pair, run.outputs("original"), labels),
        "attribution": auditing.no_maps(pair, run.outputs("original"), labels),
    }
    gaps = disparities(metric, before, after, run.masks(), confidence)
    why["disparities"] = "" if gaps else "fewer than two classes or slices of at least two test samples"
    losses = () if why["corruptions"] else auditing.corruption_losses(pair, once, confidence, progress)
    flips = None if why["perturbation"] else auditing.flip_rates(pair, once, confidence)
    agreement = None
    if not why["attribution"]:
        agreement = auditing.map_agreement(pair, once, _answers(opened), confidence)
        why["attribution"] = "" if agreement else "the maps of too few samples have an order"
    return Audit(
        task=run.report.task,
        target=run.report.target,
        against=run.report.against,
        confidence=confidence,
        main_metric=metric.name,
        original_digest=pair.original.digest,
        final_digest=pair.final.digest,
        test_digest=run.report.test_digest,
        groups=run.groups(metric, before, after),
        disparities=gaps,
        severities=SEVERITIES,
        corruptions=losses,
        perturbation=flips,
        attribution=agreement,
        not_measured={name: text for name, text in why.items() if text},
        limits=(),
        environment=pair.machine,
    )


def _answers(opened: Opened) -> np.ndarray:
    """The original's classes, `(N, C)`, as they were kept."""
    outputs = opened.run.outputs("original")
    return outputs[opened.metric.output or next(iter(outputs))]
