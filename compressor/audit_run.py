"""A finished run, opened again and audited in its own directory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..benches.audits.audit import AUDIT, SEVERITIES, Audit, judged, kept, of_limits, to_json
from ..benches.audits.disparity import disparities
from ..benches.gates import finished
from ..benches.gates.finished import Finished
from ..benches.gates.judge import Evidence
from ..benches.report import html_report
from ..benches.report.report import Report
from ..benches.timing import environment
from ..core import digest
from ..core.errors import ArtifactError, RunDirectoryError
from ..core.files import storage_errors, write_atomic
from ..core.limits import Limits
from ..core.task import Metric
from ..core.values import Artifact
from ..exporters.graph.artifact_file import describe_file
from . import auditing, recipe as recipes, task_file
from .artifacts import MODEL
from .auditing import Once, Pair
from .evaluation import task_metrics
from .lock import LOCK, read_lock
from .progress import Progress
from .recipe import Recipe
from .run_directory import RunDirectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A finished run whose task and files are still what they were."""

    run: Finished
    recipe: Recipe
    pair: Pair

    @property
    def metric(self) -> Metric:
        return task_metrics(self.pair.task)[0]


def open_run(folder: Path) -> Opened:
    """The run in a directory, with its two files.

    Raises:
        RunDirectoryError: not a finished run, or its task has changed.
        ArtifactError: a file is missing or not the one that was judged; no predictions.
        TaskError: the task cannot be loaded from where the run found it.
    """
    run, again = finished.of_run(folder), f"run `edgesmith compress` into {folder} again"
    if run.arrays is None:
        raise ArtifactError(f"{folder}: no {run.report.predictions}; {again}")
    recipe = recipes.load(folder / "recipe.toml")
    task = task_file.load_task(recipe.task, recipe.folder)
    lock = read_lock(folder / LOCK)
    identity = task_file.identity(task)
    if identity != lock.task_identity:
        raise RunDirectoryError(f"{folder}: the task's code or data have changed since this run; {again}")
    threads, seed = (int(str(run.report.environment[name])) for name in ("threads", "seed"))
    original, final = _files(folder, run.report, recipe, again)
    machine = environment.describe(threads, seed)
    pair = Pair(original=original, final=final, task=task, identity=identity, threads=threads, machine=machine)
    return Opened(run=run, recipe=recipe, pair=pair)


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


def _files(folder: Path, report: Report, recipe: Recipe, again: str) -> tuple[Artifact, Artifact]:
    """What the final file is judged against, and that file."""
    names = ["original", *(stage.id for stage in recipe.stages)]
    number = names.index(report.against)
    original = folder / f"measurements/{number:02d}-{report.against}" / MODEL
    entry = next(each for each in report.artifacts if each.target == report.target)
    final = folder / entry.path
    for path in (original, final):
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; {again}")
    if digest.of_file(final) != entry.digest:
        raise ArtifactError(f"{final}: not the file that was judged; {again}")
    described = describe_file(original, report.target), describe_file(final, report.target)
    return described[0], dataclasses.replace(described[1], dialect=entry.dialect, precision=entry.precision)
