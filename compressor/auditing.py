"""The measurements of an audit: original and final, side by side, on corrupted, disturbed and occluded test samples.

Test data is only read here: nothing is chosen by what is found.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydantic

from ..benches.audits import attribution, corruptions, perturbation, typos
from ..benches.audits.attribution import Agreement
from ..benches.audits.audit import SEVERITIES
from ..benches.audits.corruptions import CORRUPTIONS, image_like, images_of
from ..benches.audits.perturbation import FlipRate
from ..benches.audits.typos import TYPOS
from ..benches.metrics import metrics
from ..benches.metrics.accuracy import labels_of, predict
from ..benches.metrics.flips import has_confidence
from ..benches.metrics.groups import GroupLoss, pair_losses
from ..benches.timing.environment import Description
from ..core.errors import DataError, TaskError
from ..core.files import atomic_path
from ..core.task import ArraySplit, Split, Task
from ..core.values import Arrays, Artifact, Session
from .artifacts import open_session
from .evaluation import BATCH, task_metrics
from .progress import Progress
from .run_directory import Done
from .task_file import run_user_code
from .text import TextsCutWarning

_FORMAT = 1  # a release that measures something else under the same names raises it
_SCORES = "scores.npz"
_SEED = 0


class Change(Protocol):
    """Indices of test samples and a severity -> their inputs, changed."""

    def __call__(self, indices: np.ndarray, severity: int) -> Arrays: ...


Once = Callable[[str, Any, Callable[[Path, Path], dict[str, Any]]], Done]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """What is compared: two files of one target, and the task whose test split they answer."""

    original: Artifact
    final: Artifact
    task: Task
    identity: str  # of the task
    threads: int
    machine: Description

    @property
    def key(self) -> dict[str, Any]:
        """Everything that a measurement of the two depends on."""
        digests = {"original": self.original.digest, "final": self.final.digest}
        return {**digests, "task": self.identity, "machine": self.machine}

    @contextlib.contextmanager
    def open(self) -> Iterator[dict[str, Session]]:
        """Both in their runtime, by "original" and "final"."""
        with contextlib.ExitStack() as stack:
            sessions = {}
            for side, artifact in (("original", self.original), ("final", self.final)):
                sessions[side] = open_session(artifact, self.threads)
                stack.callback(sessions[side].close)
            yield sessions


def image_inputs(task: Task) -> tuple[str, ...]:
    """The task's inputs that can hold images."""
    return tuple(spec.name for spec in task.input_specs() if image_like(spec))


def no_corruptions(task: Task) -> str:
    """Why the task's test data cannot be corrupted; empty: it can."""
    if image_inputs(task) or task.texts:
        return ""
    return (
        "no input holds images (float, four axes, two of them at least 4 long), and the task has no texts; for typing "
        "errors set texts= and encode= in the task"
    )


def check_texts(task: Task) -> None:
    """The texts are those of the test split, as `encode` writes them.

    Raises:
        TaskError: they are not.
    """
    if not task.texts:
        return
    where = f"task '{task.name}': texts"
    if task.encode is None:
        raise TaskError(f"{where}: set encode= too, what makes inputs of them (TextEncoder.encode)")
    if len(task.texts) != len(task.test):
        raise TaskError(f"{where}: {len(task.texts):,} of them for {len(task.test):,} test samples; give one for each")
    indices = np.arange(min(BATCH, len(task.test)))
    made, wanted = _encoded(task, _texts(task, indices)), task.test.batch(indices)[0]
    for name, array in wanted.items():
        if name not in made or not np.array_equal(made[name], array):
            raise TaskError(
                f"{where}: encode(texts) does not give input '{name}' of the test split; give its texts in its order"
            )


def changes(task: Task) -> dict[str, Change]:
    """Every corruption that the task's test data can take, by its name.

    Raises:
        TaskError: texts that are not those of the test split.
    """
    check_texts(task)
    found: dict[str, Change] = {}
    specs = {spec.name: spec for spec in task.input_specs() if image_like(spec)}
    images = {name: images_of(spec, _batches(task.test, name)) for name, spec in specs.items()}

    def corrupted(kind: str) -> Change:
        def change(indices: np.ndarray, severity: int) -> Arrays:
            inputs = dict(task.test.batch(indices)[0])
            for name, held in images.items():
                inputs[name] = corruptions.corrupt(kind, inputs[name], indices, severity, held, _SEED)
            return inputs

        return change

    def mistyped(kind: str) -> Change:
        def change(indices: np.ndarray, severity: int) -> Arrays:
            texts = typos.mistype(kind, _texts(task, indices), indices, severity, _SEED)
            try:
                return _encoded(task, texts)
            except DataError as error:  # a tokenizer of whole words knows no word of a short text any more
                where = f"task '{task.name}': texts with typing errors ({kind}, severity {severity})"
                raise TaskError(f"{where}: {error}; set no texts= to audit without them") from error

        return change

    found |= {kind: corrupted(kind) for kind in CORRUPTIONS if images}
    return found | {kind: mistyped(kind) for kind in TYPOS if task.texts}


def corruption_losses(pair: Pair, once: Once, confidence: float, progress: Progress) -> tuple[GroupLoss, ...]:
    """What the final model lost against the original under every corruption and severity.

    Each corruption is a measurement of its own in the run directory, so that an interrupted audit goes on.
    """
    metric, found = task_metrics(pair.task)[0], {}
    wanted = changes(pair.task)
    with progress.bar("corrupted test data", len(wanted)) as advance:
        for number, (name, change) in enumerate(wanted.items()):
            advance(number, name)
            sizes = (CORRUPTIONS[name] if name in CORRUPTIONS else TYPOS[name]).sizes
            key = {**pair.key, "corruption": [name, sizes, SEVERITIES, _SEED, _FORMAT]}
            done = once(f"measurements/corruption-{name}", key, _keeps_scores(pair, name, change))
            with np.load(done.path / _SCORES, allow_pickle=False) as stored:
                for severity in SEVERITIES:
                    found[f"{name} {severity}"] = (stored[f"original/{severity}"], stored[f"final/{severity}"])
    return pair_losses(metric, found, "corruption", confidence)


def _keeps_scores(pair: Pair, corruption: str, change: Change) -> Callable[[Path, Path], dict[str, Any]]:
    def make(folder: Path, work: Path) -> dict[str, Any]:
        metric, labels, arrays = task_metrics(pair.task)[0], labels_of(pair.task.test), {}
        with pair.open() as sessions:
            for severity in SEVERITIES:
                changed = functools.partial(change, severity=severity)
                for side, outputs in _both(sessions, pair.task.test, changed):
                    try:
                        arrays[f"{side}/{severity}"] = metrics.scores_of(metric, outputs, labels)
                    except DataError as error:
                        raise DataError(f"{side} model under {corruption} {severity}: {error}") from error
        with atomic_path(folder / _SCORES) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # its stub takes the keys for `allow_pickle`
        return {}

    return make


def no_flips(pair: Pair, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> str:
    """Why flips cannot be counted; empty: they can."""
    if not _float_inputs(pair.task):
        return "no input is float, and noise in token ids or categories is not small"
    if not has_confidence(outputs[_answer(pair.task)], labels):
        return f"output '{_answer(pair.task)}' is not one score per class"
    return ""


def flip_rates(pair: Pair, once: Once, confidence: float) -> FlipRate:
    """How often each model's answers flip under small noise."""
    key = {**pair.key, "noise": [perturbation.NOISE, perturbation.DRAWS, _SEED, _FORMAT]}

    def make(folder: Path, work: Path) -> dict[str, Any]:
        test, answer = pair.task.test, _answer(pair.task)
        ranges = {name: _span(_batches(test, name)) for name in _float_inputs(pair.task)}
        with pair.open() as sessions:
            clean = dict(_both(sessions, test, lambda indices: test.batch(indices)[0]))
            flipped = {side: np.zeros(len(test)) for side in clean}
            for draw in range(perturbation.DRAWS):

                def noisy(indices: np.ndarray, draw: int = draw) -> Arrays:
                    return perturbation.disturbed(test.batch(indices)[0], ranges, indices, draw, _SEED)

                for side, outputs in _both(sessions, test, noisy):
                    flipped[side] += outputs[answer].argmax(1) != clean[side][answer].argmax(1)
        return {side: (counts / perturbation.DRAWS).tolist() for side, counts in flipped.items()}

    facts = once("measurements/perturbation", key, make).facts
    return perturbation.flip_rate(np.array(facts["original"]), np.array(facts["final"]), perturbation.DRAWS, confidence)


def no_maps(pair: Pair, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> str:
    """Why maps cannot be made or compared; empty: they can."""
    if _occluded(pair.task) is None:
        return "no input holds images or columns of numbers, which is what is occluded"
    if not has_confidence(outputs[_answer(pair.task)], labels):
        return f"output '{_answer(pair.task)}' is not one score per class"
    return attribution.missing()


def map_agreement(pair: Pair, once: Once, clean: np.ndarray, confidence: float) -> Agreement | None:
    """How far both models look at the same features for the class that the original names; None: no map has an order.

    Args:
        clean: scores `(N, C)` of the original.
    """
    count = min(attribution.SAMPLES, len(pair.task.test))
    key = {**pair.key, "maps": [count, attribution.TOP, confidence, _FORMAT]}

    def make(folder: Path, work: Path) -> dict[str, Any]:
        name, answer = _occluded(pair.task), _answer(pair.task)
        assert name is not None  # see `no_maps`
        indices = np.unique(np.linspace(0, len(pair.task.test) - 1, count).astype(np.int64))
        inputs = dict(pair.task.test.batch(indices)[0])
        last = inputs[name].ndim == 4 and corruptions.channels_last(inputs[name].shape)
        features = attribution.cells(inputs[name].shape[1:], last)
        with pair.open() as sessions:
            maps = {
                side: attribution.occlusion_maps(session, inputs, name, answer, clean[indices].argmax(1), features)
                for side, session in sessions.items()
            }
        found = attribution.agreement(maps["original"], maps["final"], indices, confidence)
        return {"agreement": None if found is None else dataclasses.asdict(found)}

    facts = once("measurements/attribution", key, make).facts["agreement"]
    return None if facts is None else pydantic.TypeAdapter(Agreement).validate_python(facts)


def _both(
    sessions: Mapping[str, Session], split: Split, inputs_of: Callable[[np.ndarray], Arrays]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Side and outputs `(N, ...)` of both models, which are asked the same; inputs are made once."""
    parts: dict[str, list[dict[str, np.ndarray]]] = {side: [] for side in sessions}
    for start in range(0, len(split), BATCH):
        made = ArraySplit(inputs_of(np.arange(start, min(start + BATCH, len(split)))))
        for side, session in sessions.items():
            parts[side].append(predict(session, made, BATCH))
    for side, each in parts.items():
        yield side, {name: np.concatenate([part[name] for part in each]) for name in each[0]}


def _batches(split: Split, name: str) -> Iterator[np.ndarray]:
    for start in range(0, len(split), BATCH):
        yield split.batch(np.arange(start, min(start + BATCH, len(split))))[0][name]


def _span(batches: Iterator[np.ndarray]) -> float:
    ends = [(float(batch.min()), float(batch.max())) for batch in batches]
    return max(high for _, high in ends) - min(low for low, _ in ends)


def _texts(task: Task, indices: np.ndarray) -> list[str]:
    return [task.texts[int(index)] for index in indices]


def _encoded(task: Task, texts: list[str]) -> Arrays:
    encode = task.encode
    assert encode is not None  # `check_texts` has looked
    with warnings.catch_warnings():  # a letter too many may make a text a token too long
        warnings.simplefilter("ignore", TextsCutWarning)
        return run_user_code(lambda: encode(texts), f"task '{task.name}': encode")  # type: ignore[no-any-return]  # its own


def _answer(task: Task) -> str:
    """The output that the main metric reads."""
    return task_metrics(task)[0].output or task.outputs[0]


def _float_inputs(task: Task) -> list[str]:
    return [spec.name for spec in task.input_specs() if np.dtype(spec.dtype).kind == "f"]


def _occluded(task: Task) -> str | None:
    """The input that maps are of: the first that holds images, or columns of numbers."""
    tables = (s.name for s in task.input_specs() if np.dtype(s.dtype).kind == "f" and len(s.shape) == 2)
    return next(iter(image_inputs(task)), None) or next(tables, None)
