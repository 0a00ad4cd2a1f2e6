"""Peak memory of one model: a fresh process each, less what an empty session of the same runtime takes."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from ..core.errors import MeasurementError
from ..core.files import storage_errors
from ..core.values import Arrays, Artifact, Interval
from . import child
from .contender import Contender, kind_of, path_of
from .timing_loop import SESSIONS

_TIMEOUT = 300.0


def peak_memory(artifact: Artifact | Path, feed: Arrays, threads: int = 1) -> int:
    """Bytes of resident memory that loading and running the model adds at its peak.

    Args:
        artifact: the file; a path is taken for an ONNX file run by ONNX Runtime.
        feed: input name -> array `(batch, ...)`.
        threads: of the session.

    Raises:
        MeasurementError: the model cannot be run, or its target not here.
    """
    return round(peak_memory_interval(artifact, feed, threads, repeats=1).value)


def peak_memory_interval(
    artifact: Artifact | Path | Contender, feed: Arrays, threads: int = 1, repeats: int = 3
) -> Interval:
    """Median, smallest and largest of `repeats` measurements in bytes, each in a fresh process.

    An allocator does not place things alike twice; the spread says what a difference between two models is worth.
    Every difference is to an empty session measured beside it, never below zero. A contender that is no target (a torch
    module) is compared with an empty session of ONNX Runtime, so that its framework's own footprint counts.

    Raises:
        MeasurementError: the model cannot be run, or its target not here.
    """
    target, path = kind_of(artifact), path_of(artifact)
    if ":" not in target and target not in SESSIONS:
        raise MeasurementError(
            f"target '{target}' cannot be measured here; measured are: {', '.join(sorted(SESSIONS))}"
        )
    with tempfile.TemporaryDirectory(prefix="edgesmith-memory-") as name:
        folder = Path(name)
        with storage_errors(folder):
            stored: dict[str, Any] = {str(index): array for index, array in enumerate(feed.values())}
            np.savez(folder / "feed.npz", **stored)
            _write_empty(folder / "empty.onnx")
        job = {"threads": threads, "feeds": str(folder / "feed.npz"), "inputs": list(feed)}
        own = job | {"files": [str(path)], "target": target, "own_feed": True}
        beside = target if target in SESSIONS else "onnxruntime-cpu"
        empty = job | {"files": [str(folder / "empty.onnx")], "target": beside, "own_feed": False}
        added = [max(0, _probe(own, folder, threads) - _probe(empty, folder, threads)) for _ in range(repeats)]
    return Interval(value=float(median(added)), low=float(min(added)), high=float(max(added)))


def _probe(job: dict[str, object], folder: Path, threads: int) -> int:
    return int(child.run("memory_probe", job, folder, threads, _TIMEOUT))


def _write_empty(path: Path) -> None:
    """The smallest model: one Identity on one number."""
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "empty", tensors[:1], tensors[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
