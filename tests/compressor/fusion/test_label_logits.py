"""Labels that are each true or not, one logit for each: fused as probabilities, given back as log-odds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from edgesmith.benches.metrics import metrics
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core.errors import DataError, RecipeError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from ..conftest import make_context

LABELS = ("even", "four", "odd")
MEMBERS = ("left", "right")  # the half of the image that each looks at


def truth(digits: np.ndarray) -> np.ndarray:
    return np.stack([digits % 2 == 0, digits == 4, digits % 2 == 1], 1).astype(np.int64)


def labelled(task: Task, columns: slice) -> Task:
    """Digits as rows of 64 pixels, and some of three labels of each."""

    def rows(split: Any) -> ArraySplit:
        return ArraySplit({"pixels": split.inputs["image"].reshape(-1, 64)}, truth(split.labels)[:, columns])

    parts = {name: rows(getattr(task, name)) for name in ("train", "validation", "test")}
    return Task(
        name="labels",
        model="no.onnx",
        outputs=("logits",),
        metrics=("label-accuracy",),
        classes=LABELS[columns],
        **parts,  # type: ignore[arg-type]
    )


def written(task: Task, side: int, folder: Path) -> Graph:
    """A logistic regression for each label on one half of the columns, as a file that gives logits."""
    assert isinstance(task.train, ArraySplit) and task.train.labels is not None
    seen = np.tile(np.arange(8) // 4 == side, 8)
    x = task.train.inputs["pixels"][:300] * seen
    fitted = [LogisticRegression(C=0.1).fit(x, column[:300]) for column in task.train.labels.T]
    weights = np.concatenate([model.coef_ for model in fitted]).T.astype(np.float32) * seen[:, None]
    arrays = {"w": weights.astype(np.float32), "b": np.concatenate([m.intercept_ for m in fitted]).astype(np.float32)}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["pixels", "w", "b"], ["logits"])],
        "labels",
        [value("pixels", 1, ["batch", 64])],
        [value("logits", 1, ["batch", len(fitted)])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx_file.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), folder
    )
    return Graph(path=folder, digest="")


def fused(task: Task, folder: Path, **keys: Any) -> tuple[Path, Context]:
    folder.mkdir(exist_ok=True)
    named = {name: written(task, side, folder / f"{name}.onnx") for side, name in enumerate(MEMBERS)}
    context = make_context(task, folder / "w", dict(named))
    stage = Fuse(id="f", members=MEMBERS, **{"gives": "label-logits"} | keys)
    stage.check(task, "w")
    return stage.run(None, context).path, context


def answers(path: Path, task: Task) -> np.ndarray:
    session = OnnxRuntimeSession(path)
    found: np.ndarray = session.run(task.split("validation", "t").batch(np.arange(360))[0])["logits"]
    session.close()
    return found


@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 3)], ids=["yes or no", "three"])
def test_the_mean_is_that_of_the_probabilities(columns: slice, task: Task, tmp_path: Path) -> None:
    some = labelled(task, columns)
    path, _ = fused(some, tmp_path)
    shares = np.mean([expit(answers(tmp_path / f"{name}.onnx", some)) for name in MEMBERS], axis=0)
    np.testing.assert_allclose(answers(path, some), logit(shares), rtol=1e-3, atol=1e-3)
    with pytest.raises(RecipeError) as caught:
        fused(some, tmp_path, returns_logits=False)
    assert str(caught.value) == (
        "w.returns_logits: 'label-accuracy' takes a label for said where the output is above 0, as every probability is; "
        "leave it out"
    )
    path, _ = fused(dataclasses.replace(some, metrics=("mse",)), tmp_path, returns_logits=False)
    np.testing.assert_allclose(answers(path, some), shares, atol=1e-6)


def certainty(shares: np.ndarray) -> np.ndarray:
    """1 less the entropy in bits of each yes or no."""
    return 1 + shares * np.log2(shares) + (1 - shares) * np.log2(1 - shares)


EACH_LABEL = {
    "voting": lambda shares: np.mean((shares > 0.5) + 1e-3 * shares, axis=0) / 1.001,
    "log-mean": lambda shares: expit(np.mean(logit(shares), axis=0)),
    "adaptive": lambda shares: (certainty(shares) * shares).sum(0) / certainty(shares).sum(0),
}


@pytest.mark.parametrize("rule", EACH_LABEL)
@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 3)], ids=["yes or no", "three"])
def test_rules_of_classes_take_each_label_apart(columns: slice, rule: str, task: Task, tmp_path: Path) -> None:
    some = labelled(task, columns)
    path, _ = fused(some, tmp_path, rule=rule)
    shares = np.stack([expit(answers(tmp_path / f"{name}.onnx", some).astype(np.float64)) for name in MEMBERS])
    shares = np.clip(shares, 1e-6, 1 - 1e-6)
    np.testing.assert_allclose(expit(answers(path, some)), EACH_LABEL[rule](shares), atol=2e-4)


@pytest.mark.parametrize("calibration", ["temperature", "platt", "isotonic"])
def test_labels_become_as_sure_as_they_are_right(calibration: str, task: Task, tmp_path: Path) -> None:
    """One curve for all labels: what was as sure before is as sure after, so that the ranking stays."""
    some = dataclasses.replace(labelled(task, slice(0, 3)), metrics=("mse",))
    before, _ = fused(some, tmp_path / "before", returns_logits=False)
    path, context = fused(some, tmp_path, returns_logits=False, calibration=calibration)
    (note,) = (note for note in context.notes if note.startswith("calibration, log loss on validation out of fold: "))
    assert note.endswith(f"; taken: {calibration}")
    validation = some.split("validation", "t")
    truth = validation.batch(np.arange(360))[1]
    assert isinstance(truth, np.ndarray)
    first, second = (answers(file, some).ravel().astype(np.float64) for file in (before, path))
    losses = [-np.log(np.where(truth.ravel() == 1, shares, 1 - shares)).mean() for shares in (first, second)]
    assert losses[1] < losses[0] - 1e-3
    order = np.argsort(first)
    assert (np.diff(second[order]) > -1e-4).all() and np.ptp(second) > 0.5
    if calibration == "temperature":
        slopes = logit(second) / logit(first)
        assert np.ptp(slopes[np.abs(logit(first)) > 0.1]) < 0.02


def test_smoothing_leaves_no_label_certain(task: Task, tmp_path: Path) -> None:
    some = labelled(task, slice(0, 3))
    before, _ = fused(some, tmp_path / "before")
    path, _ = fused(some, tmp_path, smoothing=0.2)
    np.testing.assert_allclose(expit(answers(path, some)), 0.1 + 0.8 * expit(answers(before, some)), atol=1e-5)


@pytest.mark.parametrize("rule", ["weighted", "stacking", "gate"])
@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 3)], ids=["yes or no", "three"])
def test_what_is_learnt_is_worth_it(columns: slice, rule: str, task: Task, tmp_path: Path) -> None:
    """Two halves of an image are better than one; and yes is above 0, as the metric has it."""
    some = labelled(task, columns)
    path, _ = fused(some, tmp_path, rule=rule)
    each = [tmp_path / f"{name}.onnx" for name in MEMBERS]
    left, right, both = (
        evaluate(OnnxRuntimeSession(file), some.split("validation", "t"), task_metrics(some))["label-accuracy"]
        for file in (*each, path)
    )
    assert both > max(left, right) + 0.005


def test_what_is_known_of_labels_is_kept(task: Task, tmp_path: Path) -> None:
    some = labelled(task, slice(0, 3))
    path, context = fused(some, tmp_path, exclusive=(("four", "odd"),))
    shares = expit(answers(path, some))
    assert (shares[:, 1] + shares[:, 2]).max() <= 1 + 1e-4
    assert any(note.startswith("1 rule on 360 validation samples: ") for note in context.notes)
    path, _ = fused(some, tmp_path, implies={"four": ("even",)})
    four, even = answers(path, some)[:, 1], answers(path, some)[:, 0]
    assert (four <= even + 1e-4).all()


def test_one_number_is_no_class(task: Task, tmp_path: Path) -> None:
    """A softmax would make 1 of it, whatever it is."""
    parts = {"metrics": (dataclasses.replace(metrics.METRICS["label-accuracy"], misfit=None),), "classes": ()}
    binary = labelled(task, slice(0, 1))
    for name in ("train", "validation", "test"):
        split = getattr(binary, name)
        parts[name] = ArraySplit(split.inputs, split.labels[:, 0])
    named = {name: written(binary, side, tmp_path / f"{name}.onnx") for side, name in enumerate(MEMBERS)}
    context = make_context(dataclasses.replace(binary, **parts), tmp_path / "w", dict(named))
    for kind in ("logits", "probabilities"):
        with pytest.raises(DataError) as caught:
            Fuse(id="f", members=MEMBERS, gives=kind).run(None, context)
        assert str(caught.value) == (
            f"stages[0] 'stage'.gives: 'left' gives one number for each sample, and one class alone has no {kind}; if it "
            "says yes above 0, that is 'label-logits' with labels (N, 1) of 0 or 1, else 'numbers'"
        )


@pytest.mark.parametrize("key", [{"implies": {"even": ("odd",)}}, {"exclusive": (("even", "odd"),)}], ids=str)
def test_a_rule_speaks_of_two_columns(key: dict[str, Any], task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Fuse(id="f", members=MEMBERS, gives="label-logits", **key).check(labelled(task, slice(0, 1)), "w")
    assert str(caught.value) == (
        f"w.{next(iter(key))}: a rule speaks of two columns, and the task has one, 'even', which says yes or no and so "
        "excludes its contrary as it is; leave it out"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"gives": {"left": "label-logits", "right": "numbers"}},
            "w.gives: numbers are not fused with classes: left label-logits, right numbers",
        ),
        (
            {"gives": {"left": "label-logits", "right": "logits"}},
            "w.gives: label-logits are not fused with anything else: left label-logits, right logits",
        ),
    ],
    ids=str,
)
def test_labels_go_with_labels_alone(keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Fuse(id="f", members=MEMBERS, **{"gives": "label-logits"} | keys).check(labelled(task, slice(0, 3)), "w")
    assert str(caught.value) == message


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_nothing_undoes_what_is_known_of_labels(smoothing: float, task: Task, tmp_path: Path) -> None:
    """Smoothing brings three labels nearer to a half each, and a calibration moves them: the rule comes after both."""
    some = dataclasses.replace(labelled(task, slice(0, 3)), metrics=("mse",))
    keys = {"returns_logits": False, "smoothing": smoothing, "calibration": "temperature"}
    free, context = fused(some, tmp_path / "free", **keys)
    assert any("taken: temperature" in note for note in context.notes)
    path, context = fused(some, tmp_path, exclusive=(LABELS,), **keys)
    broken = int((answers(free, some).sum(1) > 1 + 1e-5).sum())
    assert answers(path, some).sum(1).max() <= 1 + 1e-5
    (note,) = (note for note in context.notes if note.startswith("1 rule on 360 validation samples: "))
    assert f": {broken:,} of 360 broken before, 0 after" in note and broken > 20


@pytest.mark.parametrize(
    ("keys", "why"), [({"rule": "gate"}, "rule: 'gate'"), ({"calibration": "platt"}, "calibration: 'platt'")]
)
def test_what_learns_classes_takes_no_soft_labels(keys: dict[str, Any], why: str, task: Task, tmp_path: Path) -> None:
    some = dataclasses.replace(labelled(task, slice(0, 3)), metrics=("mse",))
    split = some.split("validation", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    soft = ArraySplit(split.inputs, (0.1 + 0.8 * split.labels).astype(np.float32))
    some = dataclasses.replace(some, validation=soft)
    with pytest.raises(DataError) as caught:
        fused(some, tmp_path, **keys)
    assert str(caught.value) == (
        f"stages[0] 'stage'.{why} learns from labels of 0 or 1, and some lie between; leave it out"
    )
    fused(some, tmp_path, rule="weighted")


def test_labels_are_0_or_1(task: Task, tmp_path: Path) -> None:
    some = labelled(task, slice(0, 3))
    split = some.split("validation", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    named = {name: written(some, side, tmp_path / f"{name}.onnx") for side, name in enumerate(MEMBERS)}
    signs = dataclasses.replace(some, validation=ArraySplit(split.inputs, 2 * split.labels - 1))
    with pytest.raises(DataError) as caught:
        Fuse(id="f", members=MEMBERS, gives="label-logits").run(None, make_context(signs, tmp_path / "w", dict(named)))
    assert str(caught.value) == (
        "stages[0] 'stage': labels go from -1 to 1; beside label-logits they are 0 or 1, (N, labels)"
    )
