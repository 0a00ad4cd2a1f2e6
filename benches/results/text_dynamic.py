"""The text example against its own fine-tuned network in dynamic INT8: ``python benches/results/text_dynamic.py OUT``.

Runs examples/text_sentiment/recipe.toml, with all of the encoder fine-tuned for two epochs, so that the student is not
the only one that had its time. ONNX Runtime's `quantize_dynamic` makes of the fine-tuned network what it can, as it
comes and per channel. Accuracy is on the test sentences and paired, latency is of all files in turns, one thread.
Printed is Markdown; a run that was stopped goes on with the same command.
"""

import argparse
from pathlib import Path

import numpy as np

import edgesmith
from edgesmith.benches.metrics import accuracy
from edgesmith.benches.metrics.metrics import resolve_metric
from edgesmith.benches.timing import environment, latency
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Machine
from edgesmith.compressor.task_file import load_task
from edgesmith.core.task import Split
from edgesmith.core.values import Interval
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_sentiment"
FULL = (
    "finetune.freeze=[]",
    "finetune.epochs=2",
    "finetune.learning_rate=5e-5",
    "finetune.layer_rates={ head = 20.0 }",
)
BATCHES, SECONDS, CONFIDENCE = (1, 16, 32), 60.0, 0.95


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more of the recipe's keys")
    options = parser.parse_args()
    out = options.out / f"run-{options.seed}"
    report = edgesmith.compress(
        None,
        EXAMPLE / "recipe.toml",
        overrides=(*FULL, *options.set),
        out=out,
        machine=Machine(seed=options.seed),
        progress=Progress(),
    )
    (fine_tuned,) = (out / "measurements").glob("*-finetune/model.onnx")
    (final,) = (out / artifact.path for artifact in report.artifacts if artifact.measured)
    files = {"fine-tuned, float": fine_tuned, **dynamic(fine_tuned, options.out), "edgesmith": final}
    test = load_task("task.py", EXAMPLE).split("test", "the table")
    rights = {name: right(path, test) for name, path in files.items()}
    timed = latency.compare(list(files.values()), latency.rotating_feeds(test, BATCHES), seconds=SECONDS)
    columns = [f"batch {each.batch}: ms | over float" for each in timed]
    print(f"| | accuracy | lost, points | {' | '.join(columns)} | file, MB |\n{'|---' * (4 + 2 * len(timed))}|")
    for index, (name, path) in enumerate(files.items()):
        lost = accuracy.paired_drop(
            resolve_metric("accuracy", "table"), rights["fine-tuned, float"], rights[name], CONFIDENCE
        )
        cells = [f"{100 * rights[name].mean():.2f} %", text(lost, 100) if index else "-"]
        for each in timed:
            cells += [f"{each.latency[index].p50:.3g}", f"{text(each.speedup[index - 1])}x" if index else "-"]
        print(f"| {name} | {' | '.join(cells)} | {path.stat().st_size / 1e6:.1f} |")
    print("\nNoise floor: " + ", ".join(f"{each.noise_floor:.1%} at batch {each.batch}" for each in timed))
    print(f"\n{environment.describe(threads=1, seed=options.seed)}")


def dynamic(original: Path, folder: Path) -> dict[str, Path]:
    """The same network by ONNX Runtime's own tool."""
    from onnxruntime.quantization import quantize_dynamic

    found = {"ONNX Runtime's dynamic INT8": False, "ONNX Runtime's dynamic INT8, per channel": True}
    for per_channel in found.values():
        quantize_dynamic(original, folder / f"dynamic-{per_channel}.onnx", per_channel=per_channel)
    return {name: folder / f"dynamic-{per_channel}.onnx" for name, per_channel in found.items()}


def right(path: Path, test: Split) -> np.ndarray:
    """Of every sentence whether the file knows it: 1 or 0, `(N,)`."""
    answers = accuracy.predict(OnnxRuntimeSession(path, threads=1), test, 64)["logits"].argmax(1)
    found: np.ndarray = (answers == accuracy.labels_of(test)).astype(float)
    return found


def text(found: Interval, times: float = 1.0) -> str:
    return f"{times * found.value:.2f} ({times * found.low:.2f} to {times * found.high:.2f})"


if __name__ == "__main__":
    main()
