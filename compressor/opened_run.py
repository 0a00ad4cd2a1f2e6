"""A finished run, opened again: its recipe, its task if that is still what it was, and the two files it judged."""

import dataclasses
from pathlib import Path

from ..benches.gates import finished
from ..benches.gates.finished import Finished
from ..benches.report.report import Report
from ..benches.timing import environment
from ..core import digest
from ..core.errors import ArtifactError, RunDirectoryError, TaskError
from ..core.task import Metric, Task
from ..core.values import Artifact
from ..exporters.graph.artifact_file import describe_file
from . import recipe as recipes, task_file
from .artifacts import MODEL
from .auditing import Pair
from .evaluation import task_metrics
from .recipe import Recipe
from .run_directory import RunDirectory, model_key


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
    threads, seed = (int(str(run.report.environment[name])) for name in ("threads", "seed"))
    task = task_of(folder, recipe, seed)
    identity = task_file.identity(task)
    original, final = _files(folder, run.report, recipe, again)
    machine = environment.describe(threads, seed)
    pair = Pair(original=original, final=final, task=task, identity=identity, threads=threads, machine=machine)
    return Opened(run=run, recipe=recipe, pair=pair)


def task_of(run: Path, recipe: Recipe, seed: int) -> Task:
    """The task of the run, if it is still what it was.

    Raises:
        RunDirectoryError: its code or data have changed.
        TaskError: it cannot be loaded from where the run found it.
    """
    again = f"run `edgesmith compress` into {run} again"
    try:
        task = task_file.load_task(recipe.task, recipe.folder)
    except TaskError as error:
        raise TaskError(f"{run}: {error}; {again}") from error
    key = model_key("original", task_file.identity(task), seed)
    if RunDirectory(run).finished("stages/00-original", key) is None:
        raise RunDirectoryError(f"{run}: the task's code or data have changed since this run; {again}")
    return task


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
