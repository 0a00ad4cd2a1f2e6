"""Three estimators of scikit-learn on the digits, and their fusion as a pipeline runs it."""

from pathlib import Path
from typing import Any

from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.model_graph import graph_of
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from ..conftest import make_context

MEMBERS = ("linear", "forest", "bayes")


def flat_task(task: Task) -> Task:
    """Digits as rows of 64 pixels, and three estimators of different kinds, fitted on the training images."""

    def rows(split: Any) -> ArraySplit:
        return ArraySplit({"pixels": split.inputs["image"].reshape(-1, 64)}, split.labels)

    x, y = rows(task.train).inputs["pixels"][:300], task.train.labels[:300]  # type: ignore[union-attr,index]
    return Task(
        name="flat",
        model=LogisticRegression(C=0.01, max_iter=500).fit(x, y),
        models={
            "linear": LogisticRegression(C=0.01, max_iter=500).fit(x, y),
            "forest": RandomForestClassifier(8, max_depth=6, random_state=0).fit(x, y),
            "bayes": GaussianNB(var_smoothing=1e-2).fit(x, y),
        },
        train=rows(task.train),
        validation=rows(task.validation),
        test=rows(task.test),
        outputs=("probabilities",),
    )


def graphs(task: Task, folder: Path) -> dict[str, Candidate | Graph]:
    """What the pipeline gives a stage of the task's models."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Candidate | Graph] = {}
    for name, model in task.models.items():
        path = folder / f"{name}.onnx"
        onnx_file.save(graph_of(model, task, name), path)
        found[name] = Graph(path=path, digest="")
    return found


def fused(task: Task, folder: Path, **keys: Any) -> tuple[Graph, Context]:
    context = make_context(task, folder / "w", graphs(task, folder / "g"))
    stage = Fuse(id="f", **({"members": MEMBERS, "gives": "probabilities"} | keys))
    stage.check(task, "w")
    return stage.run(None, context), context


def measured(path: Path, task: Task) -> float:
    session = OnnxRuntimeSession(path)
    return evaluate(session, task.split("validation", "t"), task_metrics(task))["accuracy"]
