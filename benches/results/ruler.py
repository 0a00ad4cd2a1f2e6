"""How far the paired measurement can be trusted: ``python benches/results/ruler.py OUT [--same N] [--changed N]``.

A file against a copy of itself, again and again: every verdict other than "no difference" is a false one. Then against
a file with 2 % more work: how often it is found, how often the interval holds the truth, and how far the estimate is
off, beside sequential means and `torch.utils.benchmark` with the same wall time. A trial that is done is kept in OUT,
where the table stands in table.md.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch.utils.benchmark import Timer

from edgesmith.benches.timing import latency
from edgesmith.benches.timing.environment import describe
from edgesmith.core.files import write_atomic
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

LAYERS, EXTRA, WIDTH, BATCH = 100, 2, 64, 16
TRUTH = math.log((LAYERS + EXTRA) / LAYERS)  # but for what a call costs besides its layers, some 5 us of a millisecond
BUSY = "import numpy as np\na = np.random.default_rng(0).random((256, 256), np.float32)\nwhile True: a @ a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--same", type=int, default=300, help="trials of a file against itself")
    parser.add_argument("--changed", type=int, default=100, help="trials against 2 %% more work")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a trial of a file against itself")
    parser.add_argument("--longer", type=float, default=60.0, help="of a trial against 2 %% more work")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, which is its seed")
    parser.add_argument("--paired", action="store_true", help="leave the other two ways out")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside it")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = [chain(options.out / f"{name}.onnx", layers) for name, layers in (("a", LAYERS), ("more", LAYERS + EXTRA))]
    twin = chain(options.out / "copy.onnx", LAYERS)
    more = paired if options.paired else changed
    trials = {
        "same": (options.same, functools.partial(paired, files[0], twin, options.seconds)),
        "changed": (options.changed, functools.partial(more, files[0], files[1], options.longer)),
    }
    with busy(options.load):
        for number in range(max(options.same, options.changed)):
            seed = options.first + number
            for kind, (times, trial) in trials.items():
                if number < times:
                    once(options.out / f"{kind}-{seed:03d}.json", functools.partial(trial, seed))
            write_atomic(options.out / "table.md", table(options.out, options.seconds, options.longer))


def chain(path: Path, layers: int) -> Path:
    """`layers` times the same matrix product and a Relu."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) * np.float32(
        (2 / WIDTH) ** 0.5
    )
    nodes, last = [], "x"
    for index in range(layers):
        nodes.append(helper.make_node("MatMul", [last, "w"], [f"m{index}"]))
        last = "y" if index == layers - 1 else f"r{index}"
        nodes.append(helper.make_node("Relu", [f"m{index}"], [last]))
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that want a core each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(processes)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def once(path: Path, trial: Any) -> None:
    if not path.exists():
        write_atomic(path, json.dumps(trial() | {"load": os.getloadavg()[0]}))


def paired(first: Path, second: Path, seconds: float, seed: int) -> dict[str, Any]:
    """The log-ratio of the second's time to the first's, its bounds, and the noise floor."""
    started = time.monotonic()
    (found,) = latency.compare([first, second], {BATCH: feed()}, seconds=seconds, seed=seed)
    ratio = found.speedup[0]
    bounds = {"value": -math.log(ratio.value), "low": -math.log(ratio.high), "high": -math.log(ratio.low)}
    return bounds | {"floor": found.noise_floor, "seconds": time.monotonic() - started}


def changed(first: Path, second: Path, seconds: float, seed: int) -> dict[str, Any]:
    """The paired measurement, then the other two ways, for as long."""
    found = paired(first, second, seconds, seed)
    sessions = [OnnxRuntimeSession(path, threads=1) for path in (first, second)]
    try:
        runs = [session.bind(feed()) for session in sessions]
        means = [mean_seconds(run, seconds / 2) for run in runs]
        timers = [Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=seconds / 2) for run in runs]
    finally:
        for session in sessions:
            session.close()
    found["sequential"] = math.log(means[1] / means[0])
    found["torch"] = math.log(timers[1].median / timers[0].median)
    return found


def mean_seconds(run: Any, seconds: float) -> float:
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        run()
        count += 1
    return (time.perf_counter() - started) / count


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((BATCH, WIDTH)).astype(np.float32)}


def table(out: Path, seconds: float, longer: float) -> str:
    """What was found so far."""
    same, other = (
        [json.loads(path.read_text()) for path in sorted(out.glob(f"{kind}-*.json"))] for kind in ("same", "changed")
    )
    lines = [str(describe(1, 0)), "", f"Load (one minute): {spread([each['load'] for each in same + other])}", ""]
    if same:
        false, floors = (
            sum(each["low"] > 0 or each["high"] < 0 for each in same),
            [100 * each["floor"] for each in same],
        )
        lines += [
            f"- {len(same)} comparisons of a file with itself, {seconds:g} s each: {false} false verdicts; estimate "
            f"off by {rms(same, 'value', 0):.3%} (root mean square), noise floor {spread(floors)} %"
        ]
    if other:
        found, middle = sum(each["low"] > 0 for each in other), float(np.median([each["value"] for each in other]))
        covered, narrow = (sum(holds(each, share) for each in other) for share in (0, 1))
        lines += [
            f"- {len(other)} comparisons with {EXTRA / LAYERS:.0%} more work, {longer:g} s each: found in {found}, the "
            f"interval holds the truth in {covered}, and in {narrow} before it is widened by the noise floor of "
            f"{spread([100 * each['floor'] for each in other])} %; median of all {math.expm1(middle):.2%}",
            "",
            "| way, with the same wall time | root mean square error |",
            "|---|---|",
            *(f"| {name} | {rms(some, key, TRUTH):.3%} |" for name, key in WAYS if (some := having(other, key))),
        ]
    return "\n".join(lines) + "\n"


def holds(trial: dict[str, Any], share: float) -> bool:
    """Whether an interval holds the truth when this share of the noise floor is taken off it again."""
    less = share * math.log1p(trial["floor"])
    return bool(trial["low"] + less <= TRUTH <= trial["high"] - less)


WAYS = (("paired", "value"), ("`torch.utils.benchmark`, medians", "torch"), ("sequential means", "sequential"))


def having(trials: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [each for each in trials if key in each]


def rms(trials: list[dict[str, Any]], key: str, truth: float) -> float:
    return float(np.sqrt(np.mean([(each[key] - truth) ** 2 for each in trials])))


def spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
