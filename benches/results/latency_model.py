"""How well pruning's latency model predicts networks it has not seen: `python benches/results/latency_model.py MODEL`.

MODEL is resnet20 or mobilenet of examples/fashion_mnist. It is fitted to the networks that `prune` with a latency would
measure, then 24 others are drawn by chance, exported in INT8 and timed. Widths alone decide the time.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgesmith.benches.results.contexts import alone
from edgesmith.compressor import task_file
from edgesmith.compressor.measure_options import Measure
from edgesmith.compressor.pruning import blocks, deployed
from edgesmith.compressor.pruning.dry_run import prunable
from edgesmith.compressor.pruning.latency_model import fit
from edgesmith.compressor.pruning.prune_to_latency import Planner, drawn, samples
from edgesmith.compressor.pruning.sensitivity import trained
from edgesmith.compressor.stage import Deployment

HELD_OUT = 24
EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"


def main() -> None:
    """Print fitted and held-out errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("resnet20", "mobilenet"))
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    task = task_file.load_task(f"task.py:{options.model}", EXAMPLE)
    candidate = trained(task)
    module = candidate.module()
    groups, refused = prunable(module, candidate.example)
    scores = {group.root: torch.arange(group.channels) for group in groups if group.root not in refused}
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(int8=True, measure=Measure(batch_sizes=(options.batch,)))
        context = alone(task, Path(folder), "latency model", {"original": candidate}.__getitem__, deployment=deployment)
        planner = Planner(candidate, groups, scores, blocks.edits(module, candidate.example), 8, context)
        structure = planner.structure
        rng = np.random.default_rng(1)
        seen = samples(structure, planner.widths)
        unseen = [drawn(structure, planner.widths, rng) for _ in range(HELD_OUT)]
        form = deployed.best_form(candidate, context, Path(folder) / "whole")
        networks = [candidate, *(planner.without(plan) for plan in [*seen, *unseen])]
        times = np.array(deployed.times(networks, form, context, Path(folder), lambda done: None))
    model = fit(structure, seen, times[: len(seen)].tolist())
    predicted, measured = np.array([model.predict(plan) for plan in unseen]), times[len(seen) :]
    errors = np.abs(predicted / measured - 1)
    print(f"{options.model}, batch {options.batch}, {form.dialect}: fitted to {len(seen)} networks, step {model.step}")
    print(f"cross-validated: median error {model.error:.1%}")
    print(
        f"held out, {HELD_OUT} networks of {measured.min():.2f} to {measured.max():.2f} of the time: median error "
        f"{np.median(errors):.1%}, 90 % within {np.quantile(errors, 0.9):.1%}, largest {errors.max():.1%}"
    )
    for plan, one, other in zip(unseen, predicted, measured, strict=True):
        print(f"  predicted {one:.3f}, measured {other:.3f}: {dataclasses.asdict(plan)}")


if __name__ == "__main__":
    main()
