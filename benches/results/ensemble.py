"""What one pruned INT8 student keeps of an ensemble: ``python benches/results/ensemble.py``.

For every seed five of the `seed` members of examples/fashion_mnist are drawn (train ten: `members.py --seeds 10`): the
mean of their probabilities, and the student of ensemble.toml, in ONNX Runtime, pruned from the first drawn and taught
by all five; for comparison the same recipe with that first one as the only teacher; and what merging makes of the five
`tuned` members, which have one start. All on the 10,000 test images; gains are paired, over the average member of
its five. The share of the ensemble's gain that is kept has a bootstrap interval over images. Printed is Markdown.

A run that was stopped goes on with the same command; `--seeds` adds students.
"""

import argparse
import importlib
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

import edgesmith
from edgesmith.benches.metrics import accuracy
from edgesmith.benches.report.report import Report
from edgesmith.benches.results.contexts import alone
from edgesmith.benches.timing import intervals, latency
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.fusion.merge import Merge
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Machine
from edgesmith.core.task import Split
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.torch_session import TorchSession

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
ALONE = ('distill.teacher="original"', "distill.teachers=[]", 'distill.teacher_weights="equal"')
DRAWN = 5  # members of an ensemble
MERGES = ("soup", "greedy-soup", "fisher", "regmean", "ties", "task-arithmetic", "dare")
_DRAWS = 10_000


def candidate(task: edgesmith.Task, name: str) -> Candidate:
    """A member, or the original."""
    factory = task.model if name == "original" else task.models[name]
    assert callable(factory)
    module = factory()
    if name == "original":
        assert task.load_weights is not None
        task.load_weights(module)
    inputs = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    return Candidate(factory=factory, example=inputs, edits=(), weights=state_of(module))


def draw(names: Sequence[str], seed: int) -> list[str]:
    """Five members; the first of them is the one that is pruned."""
    return [names[place] for place in np.random.default_rng(seed).permutation(len(names))[:DRAWN]]


def probabilities(task: edgesmith.Task, model: Candidate, split: Split) -> np.ndarray:
    session = TorchSession(model.module(), task.input_specs(), task.outputs)
    found: np.ndarray = softmax(accuracy.predict(session, split, 256)["logits"], axis=1)
    return found


def file_answers(path: Path, split: Split) -> np.ndarray:
    found: np.ndarray = accuracy.predict(OnnxRuntimeSession(path, threads=1), split, 256)["logits"].argmax(1)
    return found


def compressed(task: edgesmith.Task, out: Path, overrides: Sequence[str], seed: int) -> tuple[Report, Path]:
    """The report and the file of one run of the recipe."""
    recipe, machine = EXAMPLE / "ensemble.toml", Machine(seed=seed)
    report = edgesmith.compress(task, recipe, overrides=overrides, out=out, machine=machine, progress=Progress())
    (artifact,) = [each for each in report.artifacts if each.measured]
    return report, out / artifact.path


def gain(right: np.ndarray, members: np.ndarray) -> str:
    """Paired, in points, over the average of the members: `(N,)` and `(members, N)` of right (1) or wrong (0)."""
    found = intervals.mean(right - members.mean(0), 0.95)
    return f"{100 * found.value:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def kept(student: np.ndarray, ensemble: np.ndarray, members: np.ndarray) -> str:
    """The student's gain over the ensemble's, and where 90 % of bootstrap draws of the images lie."""
    gains = np.stack([student - members.mean(0), ensemble - members.mean(0)])
    counts = np.random.default_rng(0).multinomial(gains.shape[1], np.full(gains.shape[1], 1 / gains.shape[1]), _DRAWS)
    drawn = counts @ gains.T
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.05, 0.95))
    value = gains[0].sum() / gains[1].sum()
    return f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def merged(task: edgesmith.Task, rule: str, out: Path) -> Candidate:
    """The tuned members by one rule."""
    models = {name: candidate(task, name) for name in ("original", *task.models)}
    work = out / "work" / rule
    work.mkdir(parents=True, exist_ok=True)
    context = alone(task, work, rule, models.__getitem__)
    return Merge(id="merge", members=tuple(task.models), rule=rule).run(None, context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ensemble"))
    parser.add_argument("--members", type=int, default=10, help="that there are to draw five from")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of the students; none: merges alone")
    parser.add_argument("--alone", type=int, nargs="*", default=[0], help="of these also with one teacher, itself")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="in the recipe")
    options = parser.parse_args()
    if options.members < DRAWN:
        parser.error(f"--members {options.members}: {DRAWN} are drawn")
    sys.path.insert(0, str(EXAMPLE))
    tasks = importlib.import_module("task")
    every = [f"seed{number}" for number in range(options.members)]
    tuned, pool = tasks.tuned(), tasks.of_members("pool", every[0], every)
    test = tuned.split("test", "the table")
    labels = accuracy.labels_of(test)

    def right(answers: np.ndarray) -> np.ndarray:
        found: np.ndarray = answers == labels
        return found.astype(float)

    def rights(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each member and of their mean; found: `(members, N, classes)`."""
        return np.stack([right(each.argmax(1)) for each in found]), right(found.mean(0).argmax(1))

    def asked(task: edgesmith.Task) -> dict[str, np.ndarray]:
        return {name: probabilities(task, candidate(task, name), test) for name in task.models}

    answers = asked(pool) if options.seeds else {}
    lines: list[str] = []
    timings: list[str] = []
    results: list[tuple[np.ndarray, ...]] = []
    for seed in options.seeds:
        first, *others = names = draw(every, seed)
        task = tasks.of_members(f"ensemble-{seed}", first, others)
        teachers = f'distill.teachers=["original", {", ".join(map(json.dumps, others))}]'
        members, ensemble = rights(np.stack([answers[name] for name in names]))
        lines += [
            f"| average of {', '.join(names)} | {100 * members.mean():.2f} % | | |",
            f"| their mean of probabilities | {100 * ensemble.mean():.2f} % | {gain(ensemble, members)} | 100 % |",
        ]
        student = compressed(task, options.out / f"student-{seed}", (*options.set, teachers), seed)[1]
        files = {"taught by the five": student}
        if seed in options.alone:
            out = options.out / f"alone-{seed}"
            files["taught by its own original"] = compressed(task, out, (*options.set, *ALONE), seed)[1]
        for name, path in files.items():
            found = right(file_answers(path, test))
            share = kept(found, ensemble, members)
            text = f"pruned INT8 file, {name}, seed {seed}"
            lines.append(f"| {text} | {100 * found.mean():.2f} % | {gain(found, members)} | {share} |")
        results.append((right(file_answers(student, test)), ensemble, members.mean(0)))
        if len(files) == 1:
            continue
        feeds = {size: test.batch(np.arange(size))[0] for size in (1, 32)}
        for result in latency.compare(list(files.values())[::-1], feeds, 1):
            value, low, high = (1 / getattr(result.speedup[0], name) for name in ("value", "high", "low"))
            timings.append(f"seed {seed}, batch {result.batch}: {value:.3f} ({low:.3f} to {high:.3f})")
    if len(results) > 1:
        students, ensembles, averages = np.mean(results, axis=0)
        share = kept(students, ensembles, averages[None])
        text = f"average of {len(results)} students, each of its five"
        lines.append(f"| {text} | {100 * students.mean():.2f} % | {gain(students, averages[None])} | {share} |")
    if answers and options.members > DRAWN:
        gains = []
        for five in itertools.combinations(every, DRAWN):
            members, ensemble = rights(np.stack([answers[name] for name in five]))
            gains.append(100 * (ensemble.mean() - members.mean()))
        spread = f"{np.mean(gains):+.2f} (standard deviation {np.std(gains):.2f})"
        lines.append(f"| any five of the {options.members}, {len(gains)} draws | | {spread} | 100 % |")
    starts, together = rights(np.stack(list(asked(tuned).values())))
    lines += [
        f"| average of five tuned members | {100 * starts.mean():.2f} % | | |",
        f"| their mean of probabilities | {100 * together.mean():.2f} % | {gain(together, starts)} | 100 % |",
    ]
    for rule in MERGES:
        found = right(probabilities(tuned, merged(tuned, rule, options.out), test).argmax(1))
        share = kept(found, together, starts)
        lines.append(f"| `{rule}` of the tuned | {100 * found.mean():.2f} % | {gain(found, starts)} | {share} |")
    print("| | test accuracy | gain over the average member, points | of the ensemble's gain |\n|---|---|---|---|")
    print("\n".join(lines))
    if timings:
        print("\nLatency of the student over that of the file taught by its own original:\n" + "\n".join(timings))


if __name__ == "__main__":
    main()
