"""A task's splits as runs for a file that is quantized."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...calibration import hygiene
from ...core import digest
from ...core.errors import TaskError
from ...core.task import Split
from ...core.values import TensorSpec
from .. import task_file
from ..data import calibration_split, sample_indices
from ..evaluation import task_metrics
from .runs import BATCH, VALIDATION_SAMPLES, RunData
from .split_runs import from_split

_CALIBRATION = 512  # samples


def from_task(reference: Path, inputs: Sequence[TensorSpec]) -> RunData:
    """Calibration, validation and test runs of a task, judged by its main metric.

    Args:
        reference: "task.py" or "task.py:function".
        inputs: of the model that is quantized.

    Raises:
        TaskError: no such task, a split that is missing, inputs that are not the model's.
        DataError: calibration data that cannot be used, see `calibration.hygiene`.
    """
    task = task_file.load_task(reference.name, reference.parent)
    given, wanted = {spec.name for spec in task.input_specs()}, {spec.name for spec in inputs}
    if given != wanted:
        raise TaskError(f"{reference}: its data has {sorted(given)}, but the model's inputs are {sorted(wanted)}")
    name = calibration_split(task)
    calibration = task.split(name, "calibration")
    validation, test = task.split("validation", "choosing the layers"), task.split("test", "the verdict")
    indices = sample_indices(calibration, _CALIBRATION)
    runs = from_split(calibration, indices, BATCH, labelled=False)
    hygiene.check_samples(runs.feeds)
    hygiene.check_overlap(_digests(calibration, indices), _digests(test, np.arange(len(test))))
    return RunData(
        calibration=runs,
        validation=from_split(validation, sample_indices(validation, VALIDATION_SAMPLES), BATCH, labelled=True),
        test=from_split(test, np.arange(len(test)), BATCH, labelled=True),
        metric=task_metrics(task)[0],
    )


def _digests(split: Split, indices: np.ndarray) -> list[str]:
    digests: list[str] = []
    for start in range(0, len(indices), 256):
        digests += digest.of_samples(split.batch(indices[start : start + 256])[0])
    return digests
