"""Whether a pruned network takes the time asked for: ``python benches/results/asked_latency.py OUT [MODEL ...]``.

MODEL is resnet20 or mobilenet of examples/fashion_mnist. `prune` with `latency_ratio`, `export` and `quantize` make a
file of it, `export` and `quantize` alone another; the two are timed in pairs, by no stage. Nothing is trained: widths
and blocks alone decide the time. A run that is done is kept in OUT.
"""

import argparse
from pathlib import Path
from typing import Any

from edgesmith import compress
from edgesmith.benches.timing import environment, latency
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.task_file import load_task

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_mnist"
TARGET, BATCHES, RATIOS, SECONDS = "onnxruntime-cpu", (1, 32), (0.7, 0.5, 0.35), 20.0


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["resnet20", "mobilenet"])
    options = parser.parse_args()
    print("| model | batch | whole, ms | asked | got | off by |\n|---|---|---|---|---|---|", flush=True)
    for model in options.models:
        for batch in BATCHES:
            for ratio in RATIOS:
                print(row(options.out, model, batch, ratio), flush=True)
    print(f"\n{environment.describe(threads=1, seed=0)}")


def row(out: Path, model: str, batch: int, ratio: float) -> str:
    """One network at one batch size."""
    whole, pruned = made(out, model, batch, None), made(out, model, batch, ratio)
    feeds = latency.rotating_feeds(load_task(f"task.py:{model}", EXAMPLE).test, [batch])
    (found,) = latency.compare([whole, pruned], feeds, seconds=SECONDS)
    speedup = found.speedup[0]
    got = f"{1 / speedup.value:.3f} ({1 / speedup.high:.3f} to {1 / speedup.low:.3f})"
    off = 100 * (1 / speedup.value / ratio - 1)
    return f"| {model} | {batch} | {found.latency[0].p50:.4g} | {ratio} | {got} | {off:+.1f} % |"


def made(out: Path, model: str, batch: int, ratio: float | None) -> Path:
    """The judged file of a run."""
    prune = [] if ratio is None else [{"use": "prune", "latency_ratio": ratio}]
    recipe: dict[str, Any] = {
        "task": f"{EXAMPLE / 'task.py'}:{model}",
        "targets": [TARGET],
        "stages": [*prune, {"use": "export"}, {"use": "quantize"}],
        "measure": {"batch_sizes": [batch], "seconds": 2.0},
        "limits": {"drop": 1.0},
    }
    folder = out / f"{model}-{batch}-{ratio or 'whole'}"
    report = compress(None, recipe, out=folder, progress=Progress())
    return folder / next(each.path for each in report.artifacts if each.target == TARGET)


if __name__ == "__main__":
    main()
