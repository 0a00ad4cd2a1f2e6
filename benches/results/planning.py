"""What planning costs before anything is measured: `python benches/results/planning.py [NET ...]`.

For networks of the sizes that people deploy, with random weights: the dry run that finds what may leave, the same
asked again as a run asks after its rehearsal, and the whole of `edgesmith compress --dry-run` with half the MACs.
Then pruning to half the time: dry run, importances, damages, fit, solver and rounds, with made-up times. What latencies
take to measure (networks cut, exported and timed) is not in it, nor what making them up takes, which stands beside it.

Each in a process of its own. CPU seconds stand beside those of the clock, for a machine that others use too.
"""

import argparse
import dataclasses
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgesmith.benches.results.contexts import alone
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.job import plan, prepare
from edgesmith.compressor.pruning import deployed
from edgesmith.compressor.pruning.damage import seconds_of_sample
from edgesmith.compressor.pruning.dry_run import prunable, with_open_attention
from edgesmith.compressor.pruning.latency_model import LatencyModel
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.pruning.prune_to_latency import Planner, samples
from edgesmith.compressor.stage import Context
from edgesmith.compressor.structure import measure
from edgesmith.core.task import ArraySplit, Task
from edgesmith.core.values import Artifact

planning_nets: Any = importlib.import_module("planning_nets")  # beside this file
SAMPLES = 8
DAMAGE_SAMPLES = 256  # that `prune` takes where it can
RECIPE = {
    "task": "task.py",
    "stages": [{"use": "prune", "macs_ratio": 0.5}, {"use": "export"}],
    "targets": ["onnxruntime-cpu"],
    "limits": {"drop": 0.5},
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", metavar="NET", help=", ".join(planning_nets.NETS))
    parser.add_argument("--alone", choices=tuple(JOBS), help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(JOBS[options.alone](options.nets[0])))
        return
    print(
        "| network | parameters | groups | refused | dry run: CPU s | s | MB | again: CPU s | plan: CPU s | s | MB | "
        "to a latency: CPU s | s | MB | not counted: CPU s | rounds |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in options.nets or planning_nets.NETS:
        tried, planned, met = (_apart(job, name) for job in JOBS)
        print(
            f"| {name} | {tried['parameters'] / 1e6:.1f} M | {tried['groups']} | {tried['refused']} | "
            f"{tried['cpu']:.1f} | {tried['clock']:.1f} | {tried['peak']:.0f} | {tried['again']:.1f} | "
            f"{planned['cpu']:.1f} | {planned['clock']:.1f} | {planned['peak']:.0f} | "
            f"{met['cpu']:.1f} | {met['clock']:.1f} | {met['peak']:.0f} | {met['apart']:.1f} | {met['rounds']} |",
            flush=True,
        )


def _apart(job: str, name: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", job, name]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def _dry_run(name: str) -> dict[str, float]:
    task = _task(name)
    assert callable(task.model)
    module = task.model().eval()
    example = {key: torch.tensor(array) for key, array in any_inputs(task, 2).items()}
    value = Candidate(factory=task.model, example=example, edits=(), weights=state_of(module))
    value = with_open_attention(value)
    module = value.module()
    before = _peak()
    found, spent = _timed(lambda: prunable(module, example, factory=value.factory))
    peak = _peak() - before
    _, again = _timed(lambda: prunable(value.module(), example, factory=value.factory))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    counts = {"parameters": parameters, "groups": len(found[0]), "refused": len(found[1])}
    return {**counts, **spent, "peak": peak, "again": again["cpu"]}


def _plan(name: str) -> dict[str, float]:
    task, before = _task(name), _peak()
    with tempfile.TemporaryDirectory() as folder:
        _, spent = _timed(lambda: plan(prepare(RECIPE, task, out=Path(folder) / "run")))
    return {**spent, "peak": _peak() - before}


def _latency(name: str) -> dict[str, float]:
    task, before, clock = _task(name, DAMAGE_SAMPLES), _peak(), _Clock()
    assert callable(task.model)
    example = {key: torch.tensor(array) for key, array in any_inputs(task, 2).items()}
    value = Candidate(factory=task.model, example=example, edits=(), weights=state_of(task.model()))
    with tempfile.TemporaryDirectory() as folder:
        context = alone(task, Path(folder), "planning", {"original": value}.__getitem__)
        stage = Prune(id="prune", latency_ratio=0.5)
        for stub in (clock.best_form, clock.compare):
            setattr(deployed, stub.__name__, stub)
        setattr(Planner, "_measured", lambda planner, _, size: clock.measured(planner, size))  # noqa: B010  # a stub
        _, spent = _timed(lambda: stage.run(stage.rehearse(value, context), context))
    cpu, seconds = spent["cpu"] - clock.spent["cpu"], spent["clock"] - clock.spent["clock"]
    return {"cpu": cpu, "clock": seconds, "peak": _peak() - before, "apart": clock.spent["cpu"], "rounds": clock.rounds}


class _Clock:
    """Made-up times: of other widths what the latency model expects before it has seen any, with 2 % of noise; of a
    network as deployed a fifth that is always there, and its multiply-adds.
    """

    def __init__(self) -> None:
        self.spent, self.rounds = {"cpu": 0.0, "clock": 0.0}, 0
        self._costs: dict[Path, float] = {}

    def measured(self, planner: Planner, batch_size: int) -> dict[str, Any]:
        """See `Planner._measured`."""
        plans, structure, rng = samples(planner.structure, planner.widths), planner.structure, np.random.default_rng(0)
        weights = np.array([term.expected for term in structure.terms])
        model = LatencyModel(structure=structure, step=8, weights=tuple(weights / weights.sum()), error=0.0)
        times = [model.predict(plan) * float(np.exp(rng.normal(0, 0.02))) for plan in plans]
        seconds = seconds_of_sample(planner._candidate.module(), planner._context, batch_size)
        return {"plans": [dataclasses.asdict(plan) for plan in plans], "times": times, "seconds": seconds}

    def best_form(self, candidate: Candidate, context: Context, folder: Path) -> Artifact:
        """See `deployed.best_form`; nothing is written."""
        path = folder / str(len(self._costs))
        self._costs[path] = self._counted(lambda: measure(candidate.module(), candidate.example, ()).macs)
        return Artifact(path=path, target="", dialect="", precision="float32", inputs=(), outputs=(), digest="")

    def compare(self, whole: Artifact, part: Artifact, context: Context) -> tuple[float, float]:
        """See `deployed.compare`."""
        self.rounds += whole != part
        return 100.0, 0.2 + 0.8 * self._costs[part.path] / self._costs[whole.path]

    def _counted(self, run: Callable[[], Any]) -> Any:
        result, spent = _timed(run)
        self.spent = {key: self.spent[key] + seconds for key, seconds in spent.items()}
        return result


def _task(name: str, samples: int = SAMPLES) -> Task:
    make, inputs = planning_nets.NETS[name]
    torch.manual_seed(0)
    split = ArraySplit(inputs(np.random.default_rng(0), samples), np.zeros(samples, np.int64))
    return Task(
        name=name, model=make, train=split, validation=split, test=split, outputs=("logits",), loss="cross-entropy"
    )


def _timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    cpu, clock = time.process_time(), time.perf_counter()
    result = run()
    return result, {"cpu": time.process_time() - cpu, "clock": time.perf_counter() - clock}


def _peak() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


JOBS: dict[str, Callable[[str], dict[str, float]]] = {"dry-run": _dry_run, "plan": _plan, "latency": _latency}

if __name__ == "__main__":
    main()
