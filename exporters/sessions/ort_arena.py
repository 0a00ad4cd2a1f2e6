"""What ONNX Runtime's arena holds of a model: the allocator that weights and the results of layers come from.

Its Python interface has no call for the allocator's statistics; a profile has them, kernel by kernel
(microsoft/onnxruntime#29058).
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import onnxruntime

from ...core.errors import MeasurementError
from ...core.values import Arrays
from .ort_session import OnnxRuntimeSession, provider

_CALLS = 3  # the first allocates piece by piece, later ones as the first has shown


class Arena(NamedTuple):
    """Bytes, of the processor that the session runs on."""

    held: int  # taken from the system; the arena grows in steps and keeps what it has
    used: int  # what weights and results asked for, the most after any kernel; held / used is what growing wastes


def arena(path: Path | str, feed: Arrays, threads: int = 1, device: str = "cpu") -> Arena:
    """Run a file a few times under ONNX Runtime's profiler.

    Weights that ONNX Runtime packs anew for its kernels, and what a kernel needs for itself until it is done, are in
    `held` as far as they come from the arena, and not in `used`.

    Args:
        path: ONNX file.
        feed: input name -> array `(batch, ...)`.
        threads: of each operator.
        device: "cpu", "cuda" or "tensorrt"; kernels that run elsewhere all the same are not counted.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
        MeasurementError: it cannot run it, or its profile says nothing of the arena.
    """
    with tempfile.TemporaryDirectory(prefix="edgesmith-arena-") as name:
        session = OnnxRuntimeSession(path, threads, device, profile=str(Path(name) / "profile"))
        for _ in range(_CALLS):
            session.run(feed)
        events = json.loads(session.profiled().read_text(encoding="utf-8"))
        session.close()
    kernels = [event.get("args", {}) for event in events if event.get("cat") == "Node"]
    told = [each for each in kernels if each.get("provider") == provider(device) and "mem_arena_held" in each]
    if not told:
        raise MeasurementError(f"ONNX Runtime {onnxruntime.__version__} says nothing of it in a profile; 1.32 does")
    return Arena(
        held=max(int(each["mem_arena_held"]) for each in told),
        used=max(int(each["mem_bytes_requested_in_use"]) for each in told),
    )
