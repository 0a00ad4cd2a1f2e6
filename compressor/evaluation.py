"""The task's metrics of one session on one split."""

import dataclasses
from collections.abc import Sequence

from ..benches.metrics import accuracy, metrics
from ..core.task import Metric, Split, Task
from ..core.values import Session

BATCH = 256


def task_metrics(task: Task) -> tuple[Metric, ...]:
    """The metrics a task names, the main one first.

    Raises:
        RecipeError: a name that is in no table.
    """
    return tuple(
        metrics.resolve_metric(metric, f"task '{task.name}': metrics[{i}]") for i, metric in enumerate(task.metrics)
    )


def old_metric(task: Task) -> Metric | None:
    """The old task's main metric, of the output that answers it: "clothes: accuracy"; None: there is no old task."""
    if task.old is None:
        return None
    metric = task_metrics(task.old)[0]
    output = metric.output or task.old.outputs[0]
    return dataclasses.replace(metric, name=f"{task.old.name}: {metric.name}", output=output)


def evaluate(session: Session, split: Split, wanted: Sequence[Metric]) -> dict[str, float]:
    """Metric name -> value over a whole split.

    Raises:
        DataError: outputs that do not fit the labels, or hold NaN.
    """
    outputs, labels = accuracy.predict(session, split, BATCH), accuracy.labels_of(split)
    return {metric.name: metrics.value(metric, metrics.scores_of(metric, outputs, labels)) for metric in wanted}
