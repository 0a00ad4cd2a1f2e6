"""What `class_weights` and `learning_rates` of finetune are worth: ``python benches/results/class_imbalance.py``.

The network of examples/digits from a random start, with all images of 0 to 4 to learn from (some 108 of each) and six
of each of 5 to 9; the validation images choose the epoch, and the rate where one is looked for, and the test images,
of which there are as many of each class, judge. Printed is Markdown: the mean over the seeds and the range.
"""

import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgesmith
from edgesmith.benches.metrics import accuracy
from edgesmith.benches.results.contexts import alone
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.stage import Machine
from edgesmith.exporters.sessions.torch_session import TorchSession

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
RARE, KEPT = (5, 6, 7, 8, 9), 6
SEEDS = (0, 1, 2, 3, 4)
ALIKE: dict[str, Any] = {"epochs": 40, "batch_size": 32}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
WAYS: Mapping[str, dict[str, Any]] = {
    "`equal`, rate 3e-3": {"learning_rate": 3e-3},
    '`class_weights = "balanced"`, rate 3e-3': {"learning_rate": 3e-3, "class_weights": "balanced"},
    "`equal`, rate 1e-4": {"learning_rate": 1e-4},
    f"`equal`, `learning_rates = {list(RATES)}`, `search_epochs = 3`": {"learning_rates": RATES, "search_epochs": 3},
}


def rare(split: edgesmith.ArraySplit, seed: int) -> edgesmith.ArraySplit:
    """With so few of the rare classes, drawn by the seed."""
    assert split.labels is not None
    rng, kept = np.random.default_rng(seed), np.flatnonzero(~np.isin(split.labels, RARE))
    few = [rng.choice(np.flatnonzero(split.labels == label), KEPT, replace=False) for label in RARE]
    chosen = np.sort(np.concatenate([kept, *few]))
    return edgesmith.ArraySplit({name: array[chosen] for name, array in split.inputs.items()}, split.labels[chosen])


def recalls(keys: dict[str, Any], seed: int, work: Path) -> np.ndarray:
    """Of every class on the test images after one training, `(10,)`."""
    digits = importlib.import_module("task")
    splits = digits.splits()
    splits["train"] = rare(splits["train"], seed)
    task = edgesmith.Task(name="digits", model=digits.DigitsNet, outputs=("logits",), **splits)
    torch.manual_seed(seed)
    module = digits.DigitsNet(16)
    start = Candidate(
        factory=lambda: digits.DigitsNet(16),
        example={name: torch.tensor(array) for name, array in any_inputs(task, 2).items()},
        edits=(),
        weights=state_of(module),
    )
    context = alone(task, work, "finetune", {"original": start}.__getitem__, machine=Machine(seed=seed))
    learnt = Finetune(id="finetune", **ALIKE, **keys).run(start, context)
    session = TorchSession(learnt.module(), task.input_specs(), task.outputs)
    test = task.split("test", "the table")
    labels = accuracy.labels_of(test)
    right = accuracy.predict(session, test, 256)["logits"].argmax(1) == labels
    return np.array([right[labels == label].mean() for label in range(10)])


def main() -> None:
    sys.path.insert(0, str(EXAMPLE))
    torch.set_num_threads(1)
    print(f"| | recall of 0 to 4 | recall of 5 to 9 | worst class | mean of all |\n{'|---' * 5}|")
    for name, keys in WAYS.items():
        rows = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                found = recalls(keys, seed, Path(folder))
            often = np.delete(found, RARE)
            rows.append([often.mean(), found[list(RARE)].mean(), found.min(), found.mean()])
        shown = [f"{100 * c.mean():.1f} % ({100 * c.min():.1f} to {100 * c.max():.1f})" for c in np.array(rows).T]
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
