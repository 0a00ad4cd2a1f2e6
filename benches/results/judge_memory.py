"""Resident memory of judging a file, by number of samples: ``python benches/results/judge_memory.py``.

A convolution whose output is 256 kB a sample is held against one with rounded weights, as `edgesmith quantize` judges
an INT8 file: each count in fresh processes. Printed is the peak of `Judge` and of one file judged, less what was
resident before. Samples are drawn when they are fed; data held would count.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COUNTS, REPEATS, SIZE, CHANNELS = (200, 2000), 5, 64, 16


class Samples:
    """As many images, drawn anew for each pass."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(self._count):
            yield {"x": rng.standard_normal((1, 3, SIZE, SIZE), np.float32)}


def write_networks(folder: Path) -> None:
    """Two files that differ a little."""
    weight = np.random.default_rng(0).standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32)
    for name, values in (("original", weight), ("changed", np.round(weight * 20) / np.float32(20))):
        shapes = {"x": (1, 3, SIZE, SIZE), "y": (1, CHANNELS, SIZE, SIZE)}
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
        graph = helper.make_graph([node], "conv", [x], [y], [numpy_helper.from_array(values, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")


def measure(folder: Path, count: int) -> tuple[int, int]:
    """Bytes resident before, and the peak while one file is judged."""
    from edgesmith.benches.timing.fresh_probe import forget_peak, peak_bytes, resident_bytes
    from edgesmith.compressor.int8.closeness_judge import Judge, Promise
    from edgesmith.compressor.int8.runs import Runs

    forget_peak()
    before = resident_bytes()
    judge = Judge(folder / "original.onnx", Runs(feeds=Samples(count)), Promise())  # type: ignore[arg-type]  # made when read
    judge.quality(folder / "changed.onnx")
    return before, peak_bytes()


def main() -> None:
    """Print one line for each count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_networks(folder)
        for count in COUNTS:
            added = []
            for _ in range(REPEATS):
                command = [sys.executable, __file__, str(folder), str(count)]
                before, peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                added.append((peak - before) / 1e6)
            print(f"{count:5d} samples: {statistics.median(added):.1f} MB ({min(added):.1f} to {max(added):.1f})")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
