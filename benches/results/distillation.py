"""Which distillation loss gives a pruned network its accuracy back: ``python benches/results/distillation.py``.

The LeNet of examples/fashion_mnist (trained on 55,000 images) is pruned to `--macs-ratio`, the same share of every
layer, and trained for `--epochs` on the first `--images` training images: on labels alone, and with the original as
teacher by every loss at its defaults. What differs between seeds is the order of the images and the adapters' start;
the pruned start is the same for all. Results are judged on the 10,000 test images, paired with plain training of the
same seed, or with `--against` another variant. "All images" are the others as well, without labels, in fewer epochs, so
that no variant sees more batches than plain training does. Printed is a Markdown table.

Every training is kept in `--out`; a run that was stopped goes on.
"""

import argparse
import dataclasses
import importlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

import edgesmith
from edgesmith.benches.metrics import accuracy, metrics
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.results.contexts import alone
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Machine
from edgesmith.core.files import write_atomic
from edgesmith.core.task import Split
from edgesmith.exporters.sessions.torch_session import TorchSession

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_mnist"
SEEDS = (0, 1, 2)
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "kd": {"loss": "kd"},
    "dkd": {"loss": "dkd"},
    "dist": {"loss": "dist"},
    "nkd": {"loss": "nkd"},
    "mse": {"loss": "mse"},
    "kd + fitnets": {"loss": "kd", "features": "fitnets"},
    "kd + pkd": {"loss": "kd", "features": "pkd"},
    "kd + attention": {"loss": "kd", "features": "attention"},
    "kd, no labels": {"loss": "kd"},
    "dist, no labels": {"loss": "dist"},
    "kd, mixtures, no labels": {"loss": "kd", "mixup": True},
    "kd, all images": {"loss": "kd"},
    "kd, all images, no labels": {"loss": "kd"},
}
KEYS: dict[str, Any] = {"id": "t", "batch_size": 64, "learning_rate": 2e-3, "augment": False}


class Part:
    """Samples of a split in a row, with labels or without."""

    def __init__(self, split: Split, samples: range, labels: bool) -> None:
        self._split, self._samples, self._labels = split, samples, labels

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        inputs, labels = self._split.batch(self._samples.start + indices)
        return inputs, labels if self._labels else None


@dataclasses.dataclass(frozen=True)
class Bench:
    """One run of this script."""

    task: edgesmith.Task
    original: Candidate
    out: Path
    images: int
    epochs: int

    def context(self, task: edgesmith.Task, seed: int, name: str) -> Context:
        work = self.out / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        return alone(task, work, name, lambda _: self.original, machine=Machine(seed=seed))

    def scores(self, candidate: Candidate, split: str) -> np.ndarray:
        """Right (1) or wrong (0) for every sample."""
        session = TorchSession(candidate.module(), self.task.input_specs(), self.task.outputs)
        data = self.task.split(split, "the table")
        return metrics.scores_of(METRICS["accuracy"], accuracy.predict(session, data, 256), accuracy.labels_of(data))

    def trained(self, pruned: Candidate, variant: str, seed: int) -> dict[str, np.ndarray]:
        """Scores on validation and test; made once."""
        name = f"{variant.replace(' ', '').replace(',', '-')}-{seed}"
        path = self.out / f"{name}.npz"
        if not path.exists():
            every, epochs, rest = self.task.split("train", "the table"), self.epochs, None
            train = Part(every, range(self.images), labels="no labels" not in variant)
            if "all images" in variant:
                rest = Part(every, range(self.images, len(every)), labels=False)
                epochs = self.epochs * self.images // len(every)
            task = dataclasses.replace(self.task, train=train, unlabelled=rest)
            keys = VARIANTS[variant]
            stage = Finetune(epochs=epochs, **KEYS) if keys is None else Distill(epochs=epochs, **KEYS, **keys)
            set_seed(seed)
            started = time.monotonic()
            result = stage.run(pruned, self.context(task, seed, name))
            found = {split: self.scores(result, split) for split in ("validation", "test")}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(path, {**found, "seconds": np.array(time.monotonic() - started)})
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Complete or absent."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes names for flags
    write_atomic(path, buffer.getvalue())


def prepared(out: Path, images: int, epochs: int) -> Bench:
    """The task and its trained original."""
    sys.path.insert(0, str(EXAMPLE))
    task: edgesmith.Task = importlib.import_module("task").lenet()
    factory, load_weights = task.model, task.load_weights
    assert callable(factory)
    assert load_weights is not None
    module = factory()
    load_weights(module)
    inputs = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    original = Candidate(factory=factory, example=inputs, edits=(), weights=state_of(module))
    return Bench(task=task, original=original, out=out, images=images, epochs=epochs)


def row(bench: Bench, pruned: Candidate, variant: str, against: str) -> str:
    """A line of the table: the gain over `against` is paired by seed, its spread that over the seeds."""
    found = [bench.trained(pruned, variant, seed) for seed in SEEDS]
    other = [bench.trained(pruned, against, seed) for seed in SEEDS]
    pairs = [(ours["test"], theirs["test"]) for ours, theirs in zip(found, other, strict=True)]
    gains = np.array([100 * (ours - theirs).mean() for ours, theirs in pairs])
    bounds = [accuracy.paired_drop(METRICS["accuracy"], ours, theirs, 0.95) for ours, theirs in pairs]
    gain = verdict = ""
    if variant != against:
        gain = f"{gains.mean():+.2f} ± {gains.std(ddof=1):.2f}"
        verdict = f"{sum(bound.low > 0 for bound in bounds)} / {sum(bound.high < 0 for bound in bounds)}"
    each = ", ".join(f"{100 * run['test'].mean():.2f}" for run in found)
    validation = 100 * np.mean([run["validation"].mean() for run in found])
    seconds = np.median([float(run["seconds"]) for run in found])
    return f"| {variant} | {each} | {gain} | {verdict} | {validation:.2f} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--macs-ratio", type=float, default=0.3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--against", choices=sorted(VARIANTS), default="plain", help="what every line is compared with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = f"{options.images}-{options.epochs}-{options.macs_ratio:g}"
    bench = prepared(options.out / settings, options.images, options.epochs)
    set_seed(0)
    context = bench.context(bench.task, 0, "prune")
    pruned = Prune(id="p", macs_ratio=options.macs_ratio, allocation="uniform", round_to=1).run(bench.original, context)
    print(
        f"original {100 * bench.scores(bench.original, 'test').mean():.2f} %, "
        f"pruned {100 * bench.scores(pruned, 'test').mean():.2f} %, {'; '.join(context.notes)}\n"
    )
    gain = f"gain over {options.against}, points"
    print(f"| | test accuracy of each seed, % | {gain} | seeds above / below zero | validation, % | s |")
    print("|---|---|---|---|---|---|")
    for variant in options.variants:
        print(row(bench, pruned, variant, options.against), flush=True)


if __name__ == "__main__":
    main()
