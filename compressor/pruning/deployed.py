"""Networks as they will be deployed: exported, quantized if the recipe does so, written for the target, timed there."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from ...benches.timing import latency
from ...core.files import atomic_directory
from ...core.values import Artifact
from ...exporters import from_torch
from ...exporters.graph import onnx_file
from ...exporters.graph.canonical import canonicalise
from ...exporters.targets.targets import TARGETS
from .. import artifacts
from ..artifacts import Written
from ..candidate import Candidate
from ..data import any_inputs
from ..int8.calibrate import calibrate
from ..stage import Context, Graph

_RANGES = 32  # samples that ranges are taken from: they change no time
_AT_ONCE = 24  # files timed in one process
_SECONDS = 0.3  # timed for each file, over all restarts: some 25 quads
_WRITTEN = "written.json"


def best_form(candidate: Candidate, context: Context, folder: Path) -> Artifact:
    """The file that a run would end with, were these its weights; written once.

    How much INT8 loses of a network that is not trained yet tells nothing, so that its time alone chooses its form.

    Args:
        folder: for the files of all candidates; each has its own folder inside, named by its digest.
    """
    target, measure, threads = context.targets[0], context.deployment.measure, context.machine.threads
    return _once(
        folder / _name(candidate),
        lambda made: artifacts.write(
            _graph(candidate, context, made),
            target,
            context.task,
            made,
            measure,
            threads,
            max_drop=math.inf,
            bounds=context.deployment.bounds,
        ),
    )


def times(
    candidates: Iterable[Candidate], form: Artifact, context: Context, folder: Path, done: Callable[[int], None]
) -> list[float]:
    """Time all in the same INT8 form, every layer that can be in it.

    Args:
        candidates: the first is what the others are compared with.
        form: whose dialect they are written in.
        folder: for their files; those already there are not written again.
        done: told how many files are written.

    Returns:
        For every other its time over the first's.
    """
    files = []
    for number, candidate in enumerate(candidates, 1):
        files.append(_in_form(candidate, form, context, folder))
        done(number)
    measure = context.deployment.measure
    feeds = latency.rotating_feeds(context.task.split("validation", context.where), measure.batch_sizes[:1])
    ratios: list[float] = []
    for start in range(1, len(files), _AT_ONCE):
        some = [files[0], *files[start : start + _AT_ONCE]]
        seconds = max(_SECONDS * len(some), measure.seconds)
        (found,) = latency.compare(some, feeds, context.machine.threads, seconds=seconds, **latency.GUIDE)
        ratios += [1 / speedup.value for speedup in found.speedup]
    return ratios


def compare(whole: Artifact, part: Artifact, context: Context) -> tuple[float, float]:
    """Milliseconds of the whole network's file, and the time of the other over it."""
    measure = context.deployment.measure
    feeds = latency.rotating_feeds(context.task.split("validation", context.where), measure.batch_sizes[:1])
    (found,) = latency.compare(
        [whole, part],
        feeds,
        context.machine.threads,
        seconds=latency.GUIDE["restarts"] * measure.seconds,
        **latency.GUIDE,
    )
    return found.latency[0].p50, 1 / found.speedup[0].value


def _in_form(candidate: Candidate, form: Artifact, context: Context, folder: Path) -> Artifact:
    target = TARGETS[context.targets[0]]
    dialect = next((dialect for dialect in target.dialects() if dialect.name == form.dialect), None)

    def write(made: Path) -> Written:
        graph = _graph(candidate, context, made)
        params = None if dialect is None else graph.params
        model = canonicalise(onnx_file.load(graph.path))
        artifact = target.write(model, params, dialect, made / artifacts.MODEL, graph.keep_float)
        return Written(artifact=artifact, reason="one form for all")

    return _once(folder / f"{_name(candidate)}-{form.dialect}", write)


def _name(candidate: Candidate) -> str:
    """Of its folder: one that a killed run has left is never taken for another network's."""
    return candidate.digest()[:16]


def _graph(candidate: Candidate, context: Context, folder: Path) -> Graph:
    """The candidate as an ONNX file, with ranges where the recipe quantizes."""
    task, path = context.task, folder / "float.onnx"
    from_torch.export(candidate.module(), any_inputs(task), task.input_specs(), task.outputs, path)
    if not context.deployment.int8:
        return Graph(path=path, digest="")
    model = canonicalise(onnx_file.load(path))
    onnx_file.save(model, path)
    transposed = TARGETS[context.targets[0]].transposed
    found = calibrate(model, [any_inputs(task, _RANGES)], "min-max", transposed=transposed)
    return Graph(path=path, digest="", params=found.params, keep_float=found.keep_float)


def _once(folder: Path, write: Callable[[Path], Written]) -> Artifact:
    if not folder.exists():
        with atomic_directory(folder) as made:
            (made / _WRITTEN).write_text(json.dumps(artifacts.describe(write(made))), encoding="utf-8")
    return artifacts.described(json.loads((folder / _WRITTEN).read_text(encoding="utf-8")), folder).artifact
