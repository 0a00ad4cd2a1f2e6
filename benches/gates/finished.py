"""A finished run as a gate reads it: its report and the predictions beside it."""

import dataclasses
import itertools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...core.errors import ArtifactError, RunDirectoryError
from ...core.limits import ASKED, Limits
from ...core.task import Metric
from ..audits.disparity import Kind
from ..metrics import metrics
from ..metrics.groups import GroupLoss, class_masks, losses
from ..report import words
from ..report.report import Report, from_json

_LARGE, _TIMES = 1 << 30, 100  # bytes; no predictions are packed as small as this, and a bomb fills all memory
_LIMITS = {field.name for field in dataclasses.fields(Limits)} - {"confidence"} | {ASKED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A report and, where they stand beside it, the predictions it rests on."""

    path: Path  # of report.json
    report: Report
    arrays: Mapping[str, np.ndarray] | None

    def outputs(self, side: str) -> dict[str, np.ndarray]:
        """Output name -> `(N, ...)` of "original" or "final"."""
        assert self.arrays is not None
        return under(f"{side}/", self.arrays)

    def scores(self, metric: Metric, side: str) -> np.ndarray:
        """One row of scores per test sample, `(N,)` or `(N, K)`."""
        assert self.arrays is not None
        return metrics.scores_of(metric, self.outputs(side), self.arrays["labels"])

    def masks(self) -> dict[Kind, dict[str, np.ndarray]]:
        """The classes and slices that the report names: kind -> group -> bool `(N,)`."""
        assert self.arrays is not None
        classes = [each.name for each in self.report.groups if each.kind == "class"]
        masks = class_masks(self.arrays["labels"])
        if classes and len(classes) < len(masks):
            raise ArtifactError(
                f"{self.path}: groups: {len(classes)} classes, and the labels have {len(masks)}: written before those "
                "of one name were told apart; run `edgesmith compress` again"
            )
        named = dict(zip(classes, masks.values(), strict=True)) if classes else {}
        return {"class": named, "slice": under("slices/", self.arrays)}

    def groups(self, metric: Metric, before: np.ndarray, after: np.ndarray) -> tuple[GroupLoss, ...]:
        """What the classes and slices that the report names lost between two rows of scores."""
        confidence = self.report.confidence
        found = (losses(metric, before, after, masks, kind, confidence) for kind, masks in self.masks().items())
        return tuple(itertools.chain.from_iterable(found))


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a file of predictions whose name begins so, by the rest of it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def of_run(folder: Path) -> Finished:
    """What `read` finds in the directory of a run.

    Raises:
        RunDirectoryError: no run ended there.
        ArtifactError: see `read` and `consistent`.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise RunDirectoryError(
            f"{folder}: not a finished run (no report.json); give the directory that `edgesmith compress` wrote"
        )
    return consistent(read(path))


def consistent(found: Finished) -> Finished:
    """The same, once nothing in it contradicts the rest: every name stands for something, every interval rises.

    Raises:
        ArtifactError: something does; the report or the predictions were changed after they were written.
    """
    problem = next(itertools.chain(_unknown_names(found.report), _wrong_numbers(found.report), _other_data(found)), "")
    if problem:
        raise ArtifactError(f"{found.path}: {problem}")
    return found


def _unknown_names(report: Report) -> Iterator[str]:
    files = sum(each.target == report.target for each in report.artifacts)
    if files != 1:
        yield f"artifacts: {'several files' if files else 'no file'} of its target '{report.target}'"
    if any(report.main_metric not in side.metrics for side in (report.original, report.final)):
        yield f"main_metric: no figure of '{report.main_metric}' for both sides"
    if report.against not in [stage.id for stage in report.stages]:
        yield f"against: there is no stage '{report.against}'"


def _wrong_numbers(report: Report) -> Iterator[str]:
    if not 0.5 < report.confidence < 1:
        yield f"confidence: must lie between 0.5 and 1, got {report.confidence}"
    for each in report.latency:
        up = each.speedup
        if not 0 < up.low <= up.median <= up.high:
            yield f"latency: batch {each.batch}: no speed-up has the interval {up.median} ({up.low} to {up.high})"
    for limit in report.limits:
        ends = (limit.low, limit.measured, limit.high)
        known = [each for each in ends if each is not None]
        if len(known) not in (0, 3) or sorted(known) != known:
            yield f"limits: {limit.name}: no figure has the interval {limit.measured} ({limit.low} to {limit.high})"


def _other_data(found: Finished) -> Iterator[str]:
    """What the predictions and the report say differently of the test split."""
    if found.arrays is None:
        return
    labels, groups, where = found.arrays["labels"], found.report.groups, found.report.predictions
    classes = sum(each.kind == "class" for each in groups)
    if len(labels) != found.report.test_samples:
        yield f"test_samples: {found.report.test_samples:,}, and {where} has {len(labels):,}"
    if classes > len(class_masks(labels)):  # fewer: before classes of one name were told apart
        yield f"groups: {classes} classes, and the labels in {where} have {len(class_masks(labels))}"
    slices = under("slices/", found.arrays)
    if any(mask.dtype != np.bool_ or mask.ndim != 1 for mask in slices.values()):
        yield f"{where}: slices that do not say True or False of each sample"
    if unknown := [each.name for each in groups if each.kind == "slice" and each.name not in slices]:
        yield f"groups: slice '{unknown[0]}', and {where} has none of that name"


def read(path: Path) -> Finished:
    """A report.json and the predictions it names, None where they are not there.

    Raises:
        ArtifactError: not a readable report, or predictions that are damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot read the report: {getattr(error, 'strerror', error)}") from error
    report = from_json(text, str(path))
    for limit in report.limits:
        if limit.name not in _LIMITS:
            raise ArtifactError(f"{path}: limits: there is no limit '{limit.name}'")
    if Path(report.predictions).name != report.predictions:
        raise ArtifactError(f"{path}: predictions: '{report.predictions}' must be a file beside the report")
    file = path.with_name(report.predictions)
    if not file.exists():
        return Finished(path=path, report=report, arrays=None)
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max(_LARGE, _TIMES * file.stat().st_size):
                raise ValueError(f"{words.size(unpacked)} in a file of {words.size(file.stat().st_size)}")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as stored:
                arrays = dict(stored)
        labels = arrays["labels"]
    except Exception as error:  # zipfile, zlib and numpy have errors of their own for every kind of damage
        raise _damaged(file, error) from error
    samples = {True: arrays.get("old/labels", labels), False: labels}  # an old task has a test split of its own
    if any(array.ndim == 0 or len(array) != len(samples[name.startswith("old/")]) for name, array in arrays.items()):
        raise ArtifactError(f"{file}: arrays of different lengths; these are not the predictions of one test split")
    return Finished(path=path, report=report, arrays=arrays)


def _damaged(file: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{file}: not a whole file of predictions: {error}; run `edgesmith compress` again")
