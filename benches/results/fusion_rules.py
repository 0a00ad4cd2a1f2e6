"""The rules of `fuse` against the best of their members: ``python benches/results/fusion_rules.py [DRAWS]``.

Scikit-learn's digits: a logistic regression, a forest and a naive Bayes, fitted on the 1,077 training images; of the
720 others half chooses and half judges, drawn DRAWS times (20). What a rule learns, it learns on the half that chooses;
the best member is picked there too. Printed is Markdown: accuracy on the half that judges, and the gain over that
member, mean and standard deviation over the draws.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

import edgesmith
from edgesmith.benches.metrics import accuracy
from edgesmith.benches.results.contexts import alone
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.fusion.fusing import FUSIONS
from edgesmith.compressor.model_graph import graph_of
from edgesmith.compressor.stage import Graph
from edgesmith.core.task import Split
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

TRAINED = 1077
WAYS = {**{rule: {"rule": rule} for rule in FUSIONS}, "mean, of those that greedy selection takes": {"select": True}}


def main() -> None:
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    members = {
        "logistic regression": LogisticRegression(C=0.01, max_iter=500),
        "forest": RandomForestClassifier(8, max_depth=6, random_state=0),
        "naive Bayes": GaussianNB(var_smoothing=1e-2),
    }
    for each in members.values():
        each.fit(x[:TRAINED], y[:TRAINED])
    train = edgesmith.ArraySplit({"pixels": x[:TRAINED]}, y[:TRAINED])
    right: dict[str, list[float]] = {name: [] for name in (*members, "the best member", *WAYS)}
    with tempfile.TemporaryDirectory(prefix="edgesmith-rules-") as name:
        for draw in range(draws):
            parts = np.split(np.random.default_rng(draw).permutation(np.arange(TRAINED, len(y))), 2)
            splits = [edgesmith.ArraySplit({"pixels": x[part]}, y[part]) for part in parts]
            task = edgesmith.Task(
                name="digits",
                model=members["forest"],
                models=members,
                train=train,
                validation=splits[0],
                test=splits[1],
                outputs=("probabilities",),
            )
            trial(task, Path(name) / str(draw), right)
    print(f"| {draws} draws | accuracy | gain over the best member, points |\n|---|---|---|")
    for way, values in right.items():
        gains = 100 * (np.array(values) - right["the best member"])
        print(f"| {way} | {100 * np.mean(values):.2f} % | {gains.mean():+.2f} ± {gains.std():.2f} |")


def trial(task: edgesmith.Task, folder: Path, right: dict[str, list[float]]) -> None:
    """One draw: every member and every way."""
    folder.mkdir()
    files = {}
    for name, model in task.models.items():
        files[name] = Graph(path=folder / f"{name}.onnx", digest="")
        onnx_file.save(graph_of(model, task, name), files[name].path)
    accuracies = {name: score(graph.path, task.test) for name, graph in files.items()}
    for name, value in accuracies.items():
        right[name].append(value)
    chosen = max(files, key=lambda name: score(files[name].path, task.split("validation", "the table")))
    right["the best member"].append(accuracies[chosen])
    context = alone(task, folder, "fuse", files.__getitem__)
    for way, keys in WAYS.items():
        work = folder / way
        work.mkdir()
        stage = Fuse(id="fuse", members=tuple(files), gives="probabilities", **keys)  # type: ignore[arg-type]  # by key
        graph = stage.run(None, dataclasses.replace(context, work=work, notes=[], for_verdict={}))
        right[way].append(score(graph.path, task.test))


def score(path: Path, split: Split) -> float:
    session = OnnxRuntimeSession(path)
    try:
        answers = accuracy.predict(session, split, 256)["probabilities"].argmax(1)
    finally:
        session.close()
    return float((answers == accuracy.labels_of(split)).mean())


if __name__ == "__main__":
    main()
