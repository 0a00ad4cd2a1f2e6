"""What calibration adds to the forward passes it needs: ``benches/results/calibration_time.py FOLDER [MODEL ...]``.

FOLDER is that of benches/peers/int8.py, whose models are there: 512 samples of each in batches. A pass of the plain
float session over them, one that also hands out the tensors that are observed, and the whole of `calibrate` take turns,
one thread each; the ratios are medians over the turns.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edgesmith.benches.timing import environment
from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import placement
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

TURNS, BATCH, RULES = 5, 32, ("min-max", "mse", "entropy", "auto")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args()
    columns = ["model", "values a sample", "forward passes, s", "with the tensors", *RULES]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in options.models or sorted(path.name for path in (options.folder / "models").iterdir()):
        print(row(options.folder / "models" / name), flush=True)
    print(f"\n{environment.describe(threads=1, seed=0)}")


def row(folder: Path) -> str:
    """One model."""
    path = folder / "model.onnx"
    model = canonicalise(onnx_file.load(path))
    with np.load(folder / "calibration.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    rows = len(next(iter(arrays.values())))
    batch = 1 if folder.name.startswith("ocr") else BATCH

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, rows, batch):
            yield {key: array[start : start + batch] for key, array in arrays.items()}

    def forward() -> None:
        session = OnnxRuntimeSession(path)
        for feed in batches():
            session.run(feed)
        session.close()

    tensors = placement.tensors_to_observe(placement.place(model))

    def tapped() -> int:
        sizes = [sum(each[name].size for name in tensors) for each in taps.running(model, batches(), tensors)]
        return sum(sizes) // rows

    def calibrated(rule: str) -> object:
        return calibrate(model, batches(), rule)

    jobs: list[Callable[[], object]] = [tapped, *(functools.partial(calibrated, rule) for rule in RULES)]
    plain: list[float] = []
    ratios: list[list[float]] = [[] for _ in jobs]
    for _ in range(TURNS):
        plain.append(seconds(forward))
        for job, found in zip(jobs, ratios, strict=True):
            found.append(seconds(job) / plain[-1])
    shown = (f"{statistics.median(found):.2f}x ({min(found):.2f} to {max(found):.2f})" for found in ratios)
    return f"| {folder.name} | {tapped():,} | {statistics.median(plain):.2f} | {' | '.join(shown)} |"


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
