"""What a model costs a process that has just begun: its memory, and the time until the first answer.

Every figure is from processes of their own, the models by turns. Memory is that of the process less that of an empty
session of the same runtime beside it, so that the runtime itself and the inputs cancel out. What the runtime's arena
holds is counted by the runtime itself, once, in one process more.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...core.errors import MeasurementError
from ...core.files import storage_errors
from ...core.values import Arrays, Artifact, Interval
from . import child
from .contender import Contender, kind_of, path_of
from .latency import Progress
from .timing_loop import SESSIONS

REPEATS = 3
_TIMEOUT = 300.0

Figures = Mapping[str, Any]  # what a probe prints: numbers, and reasons why there are none
_PHASES = ("import_ms", "open_ms", "first_ms", "steady_ms", "device_ms", "graph_ms")  # of `Start`
_MEMORY = ("peak_bytes", "held_bytes", "device_bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Milliseconds until a new process answers; each the median, smallest and largest over the processes."""

    import_ms: Interval  # of the runtime's library, whatever the file
    open_ms: Interval  # from opening the file to a session that is ready
    first_ms: Interval  # the first call
    steady_ms: Interval  # a later call, with inputs handed over anew
    device_ms: Interval | None = None  # a later call on the GPU alone, by its events; None: the session has none
    graph_ms: Interval | None = None  # the same as one CUDA graph; None: the session has none, or see the reason
    graph_reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arena:
    """The allocator that weights and the results of layers come from; bytes, as the runtime counts them."""

    held_bytes: int  # taken from the system; it grows in steps and keeps what it has
    used_bytes: int  # what weights and results of layers asked for, the most after any layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshProcess:
    """One model; memory in bytes, the median, smallest and largest over the processes, never below zero.

    An allocator does not place things alike twice; the spread says what a difference between two models is worth.
    """

    peak_memory: Interval  # the most that loading and running added
    held_memory: Interval  # what stays while the session is kept: weights, and what calls reuse
    start: Start
    arena: Arena | None = None
    arena_reason: str = ""  # why there is none
    device_memory: Interval | None = None  # of the GPU; what other programs take meanwhile is in it
    device_reason: str = ""  # why there is none, where the model runs on a GPU


def measure(
    files: Sequence[Artifact | Path | Contender],
    feed: Arrays,
    threads: int = 1,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> list[FreshProcess | MeasurementError]:
    """Start every model in fresh processes, by turns.

    A contender that is no target (a torch module) is weighed against an empty session of ONNX Runtime, so that its
    framework's own footprint counts.

    Args:
        files: a path is taken for an ONNX file run by ONNX Runtime.
        feed: input name -> array `(batch, ...)`, the same for all.
        threads: of every session.
        repeats: processes for each model.
        progress: called after each round.

    Returns:
        One for each file; an error in its place where an optional contender cannot be run.

    Raises:
        MeasurementError: another one cannot be run, or its target not here.
    """
    kinds = [_known(kind_of(file)) for file in files]
    beside = [kind if kind in SESSIONS else "onnxruntime-cpu" for kind in kinds]
    found: list[list[Figures]] = [[] for _ in files]
    errors: dict[int, MeasurementError] = {}
    with tempfile.TemporaryDirectory(prefix="edgesmith-fresh-") as name:
        probe = _prober(Path(name), feed, threads)
        for done in range(repeats):
            empty = {kind: probe(kind, None) for kind in dict.fromkeys(beside)}
            order = reversed(range(len(files))) if done % 2 else range(len(files))
            for index in (each for each in order if each not in errors):
                try:
                    seen = probe(kinds[index], path_of(files[index]))
                except MeasurementError as error:
                    if not getattr(files[index], "optional", False):
                        raise
                    errors[index] = error
                    continue
                less = _less(seen, empty[beside[index]])
                found[index].append({**seen, **less})
            if progress is not None:
                progress(done + 1, repeats)
        arenas = {index: _arena(probe, kinds[index], path_of(file)) for index, file in enumerate(files) if found[index]}
    return [
        errors[index] if index in errors else dataclasses.replace(_summary(each), **arenas[index])
        for index, each in enumerate(found)
    ]


def repeats_for(restarts: int) -> int:
    """Processes for each model where times are taken in `restarts` of them."""
    return min(restarts, REPEATS)


def measure_one(
    file: Artifact | Path | Contender, feed: Arrays, threads: int = 1, repeats: int = REPEATS
) -> FreshProcess:
    """The same of one model.

    Raises:
        MeasurementError: it cannot be run, or its target not here.
    """
    return succeeded(measure([file], feed, threads, repeats)[0])


def succeeded(found: FreshProcess | MeasurementError) -> FreshProcess:
    """What was measured.

    Raises:
        MeasurementError: it was not.
    """
    if isinstance(found, MeasurementError):
        raise found
    return found


def _known(kind: str) -> str:
    if ":" not in kind and kind not in SESSIONS:
        raise MeasurementError(f"target '{kind}' cannot be measured here; measured are: {', '.join(sorted(SESSIONS))}")
    return kind


def _less(seen: Figures, empty: Figures) -> dict[str, float]:
    """Memory above that of the empty session."""
    return {key: max(0.0, seen[key] - empty.get(key, 0.0)) for key in _MEMORY if key in seen}


def _arena(probe: Callable[..., Any], kind: str, path: Path) -> dict[str, Any]:
    """The fields of `FreshProcess`. That the runtime does not say, or crashes over it, loses no other figure."""
    if not kind.startswith("onnxruntime"):
        return {"arena_reason": "of the runtimes only ONNX Runtime says what its arena holds"}
    try:
        found = dict(probe(kind, path, ask="arena"))
    except MeasurementError as error:
        found = {"reason": str(error).splitlines()[0]}
    return {"arena_reason": found["reason"]} if "reason" in found else {"arena": Arena(**found)}


def _prober(folder: Path, feed: Arrays, threads: int) -> Callable[..., Figures]:
    """A function of a session's kind and its file (None: the empty model) that starts it in a process."""
    with storage_errors(folder):
        stored: dict[str, Any] = {str(index): array for index, array in enumerate(feed.values())}
        np.savez(folder / "feed.npz", **stored)
        _write_empty(folder / "empty.onnx")
    job = {"threads": threads, "feeds": str(folder / "feed.npz"), "inputs": list(feed)}

    def probe(kind: str, path: Path | None, ask: str = "start") -> Figures:
        file = str(path or folder / "empty.onnx")
        own = {"ask": ask, "files": [file], "target": kind, "own_feed": path is not None}
        said = child.run(f"{__package__}.fresh_probe", job | own, folder, threads, _TIMEOUT)
        figures: Figures = json.loads(said.splitlines()[-1])
        return figures

    return probe


def _summary(found: Sequence[Figures]) -> FreshProcess:
    def over(key: str) -> Interval:
        values = [each[key] for each in found]
        return Interval(value=float(median(values)), low=float(min(values)), high=float(max(values)))

    return FreshProcess(
        peak_memory=over("peak_bytes"),
        held_memory=over("held_bytes"),
        start=Start(
            **{name: over(name) for name in _PHASES if all(name in each for each in found)},
            graph_reason=next((str(each["graph_reason"]) for each in found if "graph_reason" in each), ""),
        ),
        device_memory=over("device_bytes") if all("device_bytes" in each for each in found) else None,
        device_reason=next((str(each["device_reason"]) for each in found if "device_reason" in each), ""),
    )


def _write_empty(path: Path) -> None:
    """The smallest model: one Identity on one number."""
    import onnx  # here: a report, which names `Start`, is read without it

    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "empty", tensors[:1], tensors[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
