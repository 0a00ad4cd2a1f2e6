"""Frozen, full, LoRA and AdaLoRA fine-tuning of the text example, over three seeds.

`python benches/results/transfer.py OUT [--samples N]`. A training that is done is kept in OUT, one that was killed goes
on where it was; the table stands in OUT/table.md.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from edgesmith.benches.results.contexts import alone
from edgesmith.benches.timing.environment import describe
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.stage import Machine
from edgesmith.compressor.task_file import load_task
from edgesmith.core.files import write_atomic
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.sessions.torch_session import TorchSession

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "text_sentiment"
COMMON: dict[str, Any] = {
    "batch_size": 32,
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup": 0.1,
    "mixed_precision": "auto",  # bf16 where the CPU computes in it: 1.6 times as fast
}
METHODS: dict[str, dict[str, Any]] = {  # rates as their papers and PEFT's examples have them
    "frozen": {"freeze": ("encoder",), "learning_rate": 1e-3},
    "full": {"learning_rate": 5e-5, "layer_rates": {"head": 20.0}},
    "lora": {"adapter": "lora", "learning_rate": 1e-3},
    # Of four tries on validation data (2e-3; 5e-3; 1e-2; 5e-3 with an alpha of 32) the best: 82.0 %, others 81.3.
    "adalora": {"adapter": "adalora", "learning_rate": 5e-3, "adapter_alpha": 32},
}


def start(task: Task, seed: int) -> Candidate:
    """The pretrained encoder with a head drawn from the seed."""
    set_seed(seed)
    assert callable(task.model)
    assert task.load_weights is not None
    module = task.model()
    task.load_weights(module)
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    return Candidate(factory=task.model, example=example, edits=(), weights=state_of(module))


def trained(task: Task, method: str, seed: int, epochs: int, out: Path) -> dict[str, Any]:
    """Accuracy on the test split, seconds and the stage's note; read back where it was done before."""
    kept = out / f"{method}-{seed}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    work = out / f"{method}-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    context = alone(task, work, f"{method}, seed {seed}", lambda name: start(task, seed), machine=Machine(seed=seed))
    began = time.monotonic()
    result = Finetune(id="finetune", epochs=epochs, **COMMON, **METHODS[method]).run(start(task, seed), context)
    seconds = time.monotonic() - began
    metric = task_metrics(task)[0]
    session = TorchSession(result.module(), task.input_specs(), task.outputs)
    score = evaluate(session, task.test, (metric,))[metric.name]
    found = {"score": score, "seconds": seconds, "note": context.notes[-1]}
    write_atomic(kept, json.dumps(found))
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Mean over the seeds, smallest to largest; the seconds are of runs that were not killed."""
    lines = [
        "| method | accuracy on test | smallest to largest | seconds | note of the first |",
        "|---|---|---|---|---|",
    ]
    for method, runs in results.items():
        scores = [run["score"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        spread = f"{min(scores):.2%} to {max(scores):.2%}"
        lines.append(f"| {method} | {statistics.mean(scores):.2%} | {spread} | {seconds:.0f} | {runs[0]['note']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, help="train on so many of the sentences")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    task = load_task("task.py", EXAMPLE)
    if options.samples is not None:
        assert task.train is not None
        inputs, labels = task.train.batch(torch.arange(options.samples).numpy())
        task = dataclasses.replace(task, train=ArraySplit(inputs, labels))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.methods}
    for seed in range(3):
        for method in options.methods:
            results[method].append(trained(task, method, seed, options.epochs, options.out))
            print(method, seed, json.dumps(results[method][-1]), flush=True)
    write_atomic(options.out / "table.md", table(results) + f"\n{describe(torch.get_num_threads(), 0)}\n")


if __name__ == "__main__":
    main()
