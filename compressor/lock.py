"""`edgesmith.lock`: what a release is made of, digest by digest; and what differs from it later."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from ..benches.gates import finished
from ..benches.metrics import accuracy, metrics
from ..benches.report.report import Report
from ..benches.timing import environment
from ..core import digest
from ..core.errors import ArtifactError, RunDirectoryError
from ..core.task import Task
from ..exporters.graph.artifact_file import describe_file
from ..exporters.targets.targets import TARGETS
from . import recipe as recipes, task_file
from .artifacts import open_session
from .evaluation import BATCH, task_metrics
from .predictions import PREDICTIONS

LOCK = "edgesmith.lock"
_REPORT = "report.json"
SCHEMA: Literal["edgesmith.lock/1"] = "edgesmith.lock/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lock:
    """SHA-256 digests of everything a release depends on, and where it was made."""

    task: str
    target: str
    task_identity: str  # of the task's data, its choices and its source files
    recipe: str  # of recipe.toml in the run directory
    original: str  # of the trained original
    test_data: str
    calibration_data: str  # empty: nothing is quantized
    predictions: str
    artifacts: dict[str, str]  # path in the run directory -> digest
    environment: dict[str, str | int | list[str]]  # versions and machine
    engines: dict[str, str] = dataclasses.field(default_factory=dict)  # likewise
    report: str = ""  # of report.json; empty: a lock that older versions wrote
    timing_cache: str = ""  # of the file that the recipe names for its engines; empty: none
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # likewise, deployed beside the artefacts
    schema: Literal["edgesmith.lock/1"] = SCHEMA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not what the lock says."""

    what: str
    locked: str
    found: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """What differs. `environment` is for the reader: another version that gives the same answers breaks nothing."""

    run: str
    differences: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    answers: str  # what the file answered when it was asked again

    @property
    def same(self) -> bool:
        return not self.differences


def lock_of(report: Report, task_identity: str, run: Path, files: Sequence[Path] = ()) -> Lock:
    """The lock of a run that has just reached its verdict, in its directory.

    Args:
        files: of the task; each lies beside every artefact.
    """
    beside = [Path(artifact.path).with_name(Path(file).name) for artifact in report.artifacts for file in files]
    return Lock(
        task=report.task,
        target=report.target,
        task_identity=task_identity,
        recipe=digest.of_file(run / "recipe.toml"),
        original=report.stages[0].digest,
        test_data=report.test_digest,
        calibration_data=report.calibration_digest,
        predictions=digest.of_file(run / report.predictions),
        artifacts={artifact.path: artifact.digest for artifact in report.artifacts},
        environment=report.environment,
        engines={each.engine.path: digest.of_file(run / each.engine.path) for each in report.artifacts if each.engine},
        report=digest.of_file(run / _REPORT),
        timing_cache=_timing_cache(run),
        files={path.as_posix(): digest.of_file(run / path) for path in beside},
    )


def _timing_cache(run: Path) -> str:
    recipe = recipes.load(run / "recipe.toml")
    path = recipe.folder / ((recipe.build.timing_cache if recipe.build else None) or "")
    return digest.of_file(path) if path.is_file() else ""


def lock_text(lock: Lock) -> str:
    """The content of the file; `schema` stands first."""
    tree = dataclasses.asdict(lock)
    return json.dumps({"schema": tree.pop("schema"), **tree}, indent=2, allow_nan=False) + "\n"


def read_lock(path: Path) -> Lock:
    """A lock file.

    Raises:
        RunDirectoryError: there is none.
        ArtifactError: it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path}: no lock that can be read; `edgesmith compress` writes one") from error
    try:
        lock = _READER.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path}: not a lock of schema '{SCHEMA}': {where}: {first['msg']}") from error
    for name in ("threads", "seed"):
        if not isinstance(lock.environment.get(name), int):
            raise ArtifactError(f"{path}: not a lock of schema '{SCHEMA}': environment.{name}: not a whole number")
    if sum(lock.target in Path(name).parts[1:2] for name in lock.artifacts) != 1:
        raise ArtifactError(f"{path}: not a lock of schema '{SCHEMA}': artifacts: not one file of '{lock.target}'")
    return lock


def verify(run: Path) -> Verified:
    """Hold a run directory to its lock: files by digest, the task by its identity, the file by what it answers now.

    Raises:
        RunDirectoryError, ArtifactError: no lock, see `read_lock`.
        UsageError: the task cannot be loaded from where the run found it.
    """
    lock = read_lock(run / LOCK)
    files = {"recipe.toml": lock.recipe, PREDICTIONS: lock.predictions, **lock.artifacts, **lock.engines, **lock.files}
    files |= {_REPORT: lock.report} if lock.report else {}
    differences = list(_changed_files(run, files))
    answers = "not asked: a file differs"
    if not differences:
        recipe = recipes.load(run / "recipe.toml")
        task = task_file.load_task(recipe.task, recipe.folder)
        differences += _differ("the task's data or code", lock.task_identity, task_file.identity(task))
        differences += _differ("the test data", lock.test_data, task_file.split_identity(task.test))
        if lock.calibration_data:
            now = task_file.calibration_identity(task)
            differences += _differ("the calibration data", lock.calibration_data, now)
        answers = f"not asked: {TARGETS[lock.target].unmeasurable() or 'the data differ'}"
        if not differences and TARGETS[lock.target].unmeasurable() is None:
            found, answers = _asked_again(run, lock, task)
            differences += found
    here = environment.describe(int(str(lock.environment["threads"])), int(str(lock.environment["seed"])))
    other = [
        found
        for key in dict.fromkeys([*lock.environment, *here])
        for found in _differ(key, str(lock.environment.get(key)), str(here.get(key)))
    ]
    if lock.timing_cache and (run / "recipe.toml").is_file():  # it changes what a build takes, not what was built
        other += _differ("timing cache", lock.timing_cache, _timing_cache(run) or "missing")
    return Verified(run=str(run), differences=tuple(differences), environment=tuple(other), answers=answers)


def _changed_files(run: Path, files: Mapping[str, str]) -> Iterator[Difference]:
    for name, locked in files.items():
        path = run / name
        yield from _differ(name, locked, digest.of_file(path) if path.is_file() else "missing")


def _differ(what: str, locked: str, found: str) -> list[Difference]:
    return [] if locked == found else [Difference(what=what, locked=locked, found=found)]


def _asked_again(run: Path, lock: Lock, task: Task) -> tuple[list[Difference], str]:
    """The judged file on the test split, beside the predictions that are kept."""
    (path,) = (name for name in lock.artifacts if Path(name).parts[1] == lock.target)
    session = open_session(describe_file(run / path, lock.target), int(str(lock.environment["threads"])))
    try:
        now = accuracy.predict(session, task.test, BATCH)
    finally:
        session.close()
    before = finished.read(run / _REPORT)
    assert before.arrays is not None  # their digest was looked at
    main, kept, labels = task_metrics(task)[0], before.outputs("final"), before.arrays["labels"]
    values = [metrics.value(main, metrics.scores_of(main, outputs, labels)) for outputs in (kept, now)]
    largest = max(_largest(kept[name], now[name]) for name in kept)
    said = f"{main.name} {values[1]:.6g} on {len(labels):,} test samples, outputs at most {largest:.3g} from those kept"
    return _differ(f"{main.name} of {path}", f"{values[0]:.6g}", f"{values[1]:.6g}"), said


def _largest(kept: np.ndarray, now: np.ndarray) -> float:
    return float(np.abs(kept.astype(np.float64) - now.astype(np.float64)).max())


_READER: pydantic.TypeAdapter[Lock] = pydantic.TypeAdapter(Lock)
