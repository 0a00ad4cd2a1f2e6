"""What a run has found, as its report says it."""

from collections.abc import Sequence

from ..benches.metrics import metrics
from ..benches.report.report import ArtifactResult, MetricSource, Report, worst_speedup
from ..benches.timing.environment import Description
from ..core.ledger import Ledger
from ..core.limits import Verdict
from ..exporters.targets.targets import TARGETS
from . import engines, task_file
from .artifacts import Written
from .evaluation import old_metric, task_metrics
from .job import Job
from .measuring import Outcome


def report_of(
    job: Job, ledger: Ledger, found: Outcome, verdict: Verdict, written: Sequence[Written], machine: Description
) -> Report:
    """Join ledger, measurement and verdict.

    Args:
        written: a file for each target, the judged one first.
        machine: where it was measured.
    """
    task, recipe = job.task, job.recipe
    main, old = task_metrics(task)[0], old_metric(task)
    quantizes = any(stage.quantizes for stage in recipe.stages)
    return Report(
        task=task.name,
        target=recipe.targets[0],
        against=recipe.against,
        verdict=verdict.status,
        confidence=recipe.limits.confidence,
        main_metric=main.name,
        metric_source=MetricSource(table=metrics.table_name(main), output=main.output),
        old_metric=None if old is None else old.name,
        test_samples=found.test_samples,
        limits=verdict.results,
        original=found.original,
        final=found.final,
        drop=found.drop,
        speedup=worst_speedup(found.latency),
        latency=found.latency,
        guilty_stage=ledger.since(recipe.against).guilty(main.higher_is_better),
        stages=ledger.entries,
        artifacts=tuple(_artifact_result(job, each) for each in written),
        environment=machine,
        unmeasured_reason=found.evidence.unmeasured_reason,
        same_file=found.evidence.same_file,
        groups=found.evidence.groups,
        flips=found.flips,
        calibration_error=found.calibration_error,
        energy_saving=found.energy_saving,
        energy_reason=found.energy_reason,
        throughput=found.throughput,
        throughput_reason=found.throughput_reason,
        test_digest=task_file.split_identity(task.test),
        calibration_digest=task_file.calibration_identity(task) if quantizes else "",
    )


def _artifact_result(job: Job, written: Written) -> ArtifactResult:
    artifact, reason = written.artifact, written.reason
    here = TARGETS[artifact.target].unmeasurable() is None
    measured = here and artifact.target == job.recipe.targets[0]
    return ArtifactResult(
        target=artifact.target,
        dialect=artifact.dialect,
        precision=artifact.precision,
        path=str(artifact.path.relative_to(job.out)),
        digest=artifact.digest,
        file_bytes=artifact.file_bytes,
        measured=measured,
        reason="only the first target is judged" if here and not measured else reason,
        layers=written.layers,
        ranges=written.ranges,
        tried=written.tried,
        **engines.report(artifact, job.recipe.build, job.out),
    )
