"""What measuring adds to a call: ``python benches/results/overhead.py OUT [--quads N]``.

The time that the timing loop reports of a call, bound as it binds it and the clock read around each, against ONNX
Runtime's own `run_with_iobinding` in a plain loop with the clock read once around it. Both take turns in ABBA order in
blocks of some 5 ms in one process; the ratio is the median over quads, with its bootstrap interval.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from edgesmith.benches.results.ruler import BATCH, WIDTH, chain
from edgesmith.benches.timing import environment, intervals
from edgesmith.benches.timing.timing_loop import _block
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

_LAYERS = (20, 200, 1000)
_BLOCK_MS = 5.0
_CONFIDENCE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="for the files that are timed")
    parser.add_argument("--quads", type=int, default=400)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{name}: {value}" for name, value in environment.describe(threads=1, seed=0).items()))
    print("\n| a call takes | measuring adds |\n|---|---|")
    for layers in _LAYERS:
        print(row(chain(options.out / f"{layers}.onnx", layers), options.quads), flush=True)


def row(path: Path, quads: int) -> str:
    """A line of the table."""
    feed = np.random.default_rng(0).random((BATCH, WIDTH), np.float32)
    session = OnnxRuntimeSession(path)
    (spec,) = session.inputs
    bare, measured = raw(path, feed), session.bind({spec.name: feed})
    count = max(1, round(_BLOCK_MS / bare(20)))
    ratios, calls = [], []
    for _ in range(quads):
        first, one, two, last = bare(count), looped(measured, count), looped(measured, count), bare(count)
        ratios.append(math.log((one + two) / (first + last)))
        calls += [first, last]
    values = np.array(ratios)
    found = intervals.bootstrap(lambda chosen: float(np.median(values[chosen])), quads, _CONFIDENCE)
    added = [100 * math.expm1(value) for value in (found.value, found.low, found.high)]
    return f"| {np.median(calls):.3g} ms | {added[0]:+.2f} % ({added[1]:+.2f} to {added[2]:+.2f}) |"


def raw(path: Path, feed: np.ndarray) -> Callable[[int], float]:
    """Milliseconds of one of so many calls, by ONNX Runtime's own interface alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, feed)
    binding.bind_output(session.get_outputs()[0].name)

    def timed(count: int) -> float:
        session.run_with_iobinding(binding)  # brings it back into the caches
        start = time.perf_counter_ns()
        for _ in range(count):
            session.run_with_iobinding(binding)
        return (time.perf_counter_ns() - start) / count / 1e6

    return timed


def looped(run: Callable[[], None], count: int) -> float:
    """The same as the timing loop reports it."""
    return sum(_block([run], count, 0)) / count / 1e6


if __name__ == "__main__":
    main()
