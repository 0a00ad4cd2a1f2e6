"""Is a LeNet better with the ResNet as its teacher? `python teacher_or_not.py [--epochs 30] [--out runs]`

For each of three seeds the same random start is trained twice for the same number of epochs, on the labels alone and
with the teacher beside them, and both are judged on the same 10,000 test images. A run that was stopped goes on.

The settings were chosen on validation data, one seed: without moved and mirrored images, which so small a network does
not learn in this time, and long enough for the labels alone to be learnt by heart. In 6 or 12 epochs, while the network
still underfits, the teacher gives nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import task

import edgesmith
from edgesmith.benches.metrics import accuracy, metrics
from edgesmith.compressor.stage import Machine

SEEDS = (0, 1, 2)


def predictions(use: str, seed: int, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the final file on the test images, and the labels."""
    training = {
        "use": use,
        "id": "train",
        "epochs": options.epochs,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "mixed_precision": "auto",
        "augment": False,
    }
    if use == "distill":
        training |= {"teacher": "resnet20", "temperature": 4.0}
    recipe = {"task": "task.py", "stages": [training, {"use": "export"}], "limits": {"metric": 0.5}}
    recipe["measure"] = {"batch_sizes": [1], "seconds": 0.5}
    out = options.out / f"lenet-{use}-{seed}"
    edgesmith.compress(task.untrained_lenet(), recipe, out=out, machine=Machine(seed=seed))
    with np.load(out / "predictions.npz", allow_pickle=False) as stored:
        return stored["final/logits"], stored["labels"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    metric, gains = metrics.METRICS["accuracy"], []
    for seed in SEEDS:
        scores = {}
        for use in ("finetune", "distill"):
            logits, labels = predictions(use, seed, options)
            scores[use] = metric.scores(logits, labels)
        gain = accuracy.paired_drop(metric, scores["distill"], scores["finetune"], 0.95)
        gains.append(scores["distill"] - scores["finetune"])
        means = ", ".join(f"{use} {100 * values.mean():.2f} %" for use, values in scores.items())
        print(
            f"seed {seed}: {means}; gain {100 * gain.value:.2f} points ({100 * gain.low:.2f} to {100 * gain.high:.2f})",
            flush=True,
        )
    each = 100 * np.array([gain.mean() for gain in gains])
    print(f"over {len(SEEDS)} seeds: gain {each.mean():.2f} points, standard deviation {each.std(ddof=1):.2f}")


if __name__ == "__main__":
    main()
