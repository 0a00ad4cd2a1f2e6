"""What both files answer to the test split, kept beside the report: gates and measurements rest on it."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..benches.metrics.accuracy import labels_of, predict
from ..core.errors import TaskError
from ..core.files import atomic_path
from ..core.task import Task
from ..core.values import Artifact
from .artifacts import open_session
from .evaluation import BATCH
from .task_file import run_user_code

PREDICTIONS = "predictions.npz"


def keep_predictions(original: Artifact, final: Artifact, task: Task, threads: int, folder: Path) -> None:
    """Run both on the test split and keep every prediction: `original/OUTPUT`, `final/OUTPUT`, `labels`.

    Where the task names an old one, on its test split too: `old/original/OUTPUT`, `old/final/OUTPUT`, `old/labels`.
    """
    tests = {"": task.test} if task.old is None else {"": task.test, "old/": task.old.test}
    arrays = {f"{which}labels": labels_of(split) for which, split in tests.items()}
    arrays |= {f"slices/{name}": mask for name, mask in slice_masks(task).items()}
    for side, artifact in (("original", original), ("final", final)):
        session = open_session(artifact, threads)
        try:
            for which, split in tests.items():
                arrays |= {f"{which}{side}/{name}": array for name, array in predict(session, split, BATCH).items()}
        finally:
            session.close()
    with atomic_path(folder / PREDICTIONS) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # its stub takes the keys for `allow_pickle`


def slice_masks(task: Task) -> dict[str, np.ndarray]:
    """The task's slices of the test split: name -> bool `(N,)`.

    Raises:
        TaskError: a slice that is not one boolean per test sample, or has no sample.
    """
    masks = {}
    for name, given in task.slices.items():
        where = f"task '{task.name}': slices['{name}']"
        mask = np.asarray(run_user_code(functools.partial(_asked, given, task), where) if callable(given) else given)
        if mask.dtype != np.bool_ or mask.shape != (len(task.test),):
            raise TaskError(
                f"{where}: {mask.dtype} {mask.shape}; it must say True or False of each of the {len(task.test):,} test "
                f"samples, bool ({len(task.test)},)"
            )
        if not mask.any():
            raise TaskError(f"{where}: no test sample is in it; take it out, or mend what it looks for")
        masks[name] = mask
    return masks


def _asked(function: Callable[..., np.ndarray], task: Task) -> np.ndarray:
    starts = range(0, len(task.test), BATCH)
    batches = (task.test.batch(np.arange(start, min(start + BATCH, len(task.test)))) for start in starts)
    return np.concatenate([function(inputs, labels) for inputs, labels in batches])
