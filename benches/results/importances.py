"""Which importance to prune by: ``python benches/results/importances.py OUT``.

Three networks (the digits example's, and LeNet and the small ResNet of examples/fashion_mnist) are pruned by every
importance to one or two shares of their MACs, with `global` allocation, and judged on the test images twice: as pruned
(batch norms estimated anew), and after a short training on labels. Three seeds: they decide the order of the training's
images, and what `random` takes out. Every pruning and training is a file in OUT: a run that was stopped goes on.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.pruning.importance import IMPORTANCES
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Machine
from edgesmith.core.errors import RecipeError
from edgesmith.core.files import write_atomic
from edgesmith.core.task import Split
from edgesmith.exporters.sessions.torch_session import TorchSession

EXAMPLES = Path(__file__).parents[2] / "examples"
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What is pruned, how far, and how long it is trained afterwards."""

    task: Callable[[], edgesmith.Task]
    ratios: tuple[float, ...]
    images: int  # of the training
    epochs: int


class First:
    """The first samples of a split."""

    def __init__(self, split: Split, count: int) -> None:
        self._split, self._count = split, min(count, len(split))

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        return self._split.batch(indices)


def module_of(folder: str, name: str) -> ModuleType:
    """`examples/FOLDER/NAME.py`; its neighbours are imported by name."""
    sys.path.insert(0, str(EXAMPLES / folder))
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", EXAMPLES / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(EXAMPLES / folder))
    return module


def digits() -> edgesmith.Task:
    """The example's network at width 16, trained as the example trains it."""
    module = module_of("digits", "task")
    return edgesmith.Task(
        name="digits",
        model=functools.partial(module.DigitsNet, 16),
        load_weights=module.train,
        loss="cross-entropy",
        outputs=("logits",),
        augment=module.shift,
        **module.splits(),
    )


def fashion(name: str) -> edgesmith.Task:
    """A network of examples/fashion_mnist with its checkpoint."""
    task: edgesmith.Task = getattr(module_of("fashion_mnist", "task"), name)()
    return task


NETWORKS: dict[str, Network] = {
    "digits": Network(task=digits, ratios=(0.5, 0.2), images=1077, epochs=4),
    "lenet": Network(task=functools.partial(fashion, "lenet"), ratios=(0.5, 0.25), images=4000, epochs=2),
    "small-resnet": Network(task=functools.partial(fashion, "ensemble"), ratios=(0.4,), images=1500, epochs=2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """One network with its original."""

    name: str
    network: Network
    task: edgesmith.Task
    original: Candidate
    out: Path

    def context(self, seed: int, name: str) -> Context:
        work = self.out / "work" / name  # of one cell: a training that was killed goes on there
        work.mkdir(parents=True, exist_ok=True)
        return alone(self.task, work, self.name, lambda _: self.original, machine=Machine(seed=seed))

    def score(self, candidate: Candidate) -> float:
        """Percent right of the test images."""
        session = TorchSession(candidate.module(), self.task.input_specs(), self.task.outputs)
        data = self.task.split("test", "the table")
        right = metrics.scores_of(METRICS["accuracy"], accuracy.predict(session, data, 256), accuracy.labels_of(data))
        return 100 * float(right.mean())

    def found(self, importance: str, ratio: float, seed: int) -> dict[str, Any] | None:
        """Test accuracy as pruned and as trained, made once; None where the importance ranks nothing."""
        path = self.out / f"{self.name}-{importance}-{ratio:g}-{seed}.json"
        if not path.exists():
            context = self.context(seed, path.stem)
            write_atomic(path, json.dumps(self._made(importance, ratio, context)).encode())
            shutil.rmtree(context.work)
        result: dict[str, Any] | None = json.loads(path.read_text())
        return result

    def _made(self, importance: str, ratio: float, context: Context) -> dict[str, Any] | None:
        set_seed(context.machine.seed)
        try:
            pruned = Prune(id="p", macs_ratio=ratio, importance=importance, round_to=1).run(self.original, context)
        except RecipeError as error:
            if "can rank none of the groups" in str(error):
                return None
            raise
        network = self.network
        task = dataclasses.replace(self.task, train=First(self.task.split("train", "the table"), network.images))
        stage = Finetune(id="t", epochs=network.epochs, batch_size=64, learning_rate=2e-3)
        trained = stage.run(pruned, dataclasses.replace(context, task=task))
        return {"pruned": self.score(pruned), "trained": self.score(trained), "parameters": pruned.parameters()}


def prepared(name: str, out: Path) -> Bench:
    """The task and its trained original."""
    network = NETWORKS[name]
    task = network.task()
    assert callable(task.model)
    assert task.load_weights is not None
    torch.manual_seed(0)
    module = task.model()
    task.load_weights(module)
    inputs = {key: torch.tensor(array) for key, array in any_inputs(task, 2).items()}
    original = Candidate(factory=task.model, example=inputs, edits=(), weights=state_of(module))
    return Bench(name=name, network=network, task=task, original=original, out=out)


def line(bench: Bench, importance: str) -> str:
    """Mean and standard deviation over the seeds, as pruned and as trained, for each ratio."""
    cells = []
    for ratio in bench.network.ratios:
        found = [bench.found(importance, ratio, seed) for seed in SEEDS]
        for key in ("pruned", "trained"):
            values = np.array([each[key] for each in found if each is not None])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) and values.std() >= 0.005 else ""
            cells.append(f"{values.mean():.2f}{spread}" if len(values) else "says nothing")
    return f"| {importance} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        bench = prepared(name, options.out)
        score, size = bench.score(bench.original), bench.original.parameters()
        print(f"\n{name}: original {score:.2f} %, {size:,} parameters, crc32 of its weights {fingerprint(bench):08x}\n")
        ratios = bench.network.ratios
        heads = [f"{ratio:g} of MACs, {what}" for ratio in ratios for what in ("pruned", "trained")]
        print(f"| importance | {' | '.join(heads)} |")
        print("|---" * (1 + 2 * len(ratios)) + "|")
        for importance in IMPORTANCES:
            print(line(bench, importance), flush=True)


def fingerprint(bench: Bench) -> int:
    """Says whether two runs of this script began with the same network."""
    total = 0
    for tensor in bench.original.weights.values():
        total = zlib.crc32(tensor.numpy().tobytes(), total)
    return total


if __name__ == "__main__":
    main()
