"""What cannot be fused is named: members, their classes and outputs, and data that nothing can be learnt from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.fusion.combine import Combine
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.fusion.fuse_checks import check_unit, member_rows
from edgesmith.compressor.fusion.fuse_judge import check_computes
from edgesmith.compressor.fusion.member_outputs import Unchanged
from edgesmith.compressor.model_graph import graph_of
from edgesmith.compressor.stage import Graph
from edgesmith.core.errors import ArtifactError, ContractError, DataError, RecipeError, TaskError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph import onnx_file

from ...exporters.graphs import U8, quantized
from ..conftest import make_context
from .digits_members import MEMBERS, flat_task, fused, graphs, measured


@pytest.fixture(scope="module")
def flat(task: Task) -> Task:
    return flat_task(task)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"members": ("linear",)}, "w.members: fusing takes at least two models; got ['linear']"),
        ({"members": ("linear", "linear")}, "w.members: ['linear', 'linear'] names one twice"),
        ({"gives": ""}, "w.gives: what 'linear' gives has to be said: logits, probabilities, label-logits or numbers; got ''"),
        ({"gives": {"liner": "logits"}}, "w.gives: 'liner' is no member; members: linear, forest, bayes"),
        ({"gives": "logits"}, "w.gives: 'linear' is a LogisticRegression, which gives probabilities, not logits"),
        (
            {"gives": {"linear": "numbers", "forest": "logits", "bayes": "logits"}},
            "w.gives: numbers are not fused with classes: linear numbers, forest logits, bayes logits",
        ),
        ({"gives": "numbers", "rule": "voting"}, "w.rule: 'voting' fuses probabilities; for numbers: mean, stacking, weighted"),
        ({"gives": "numbers", "calibration": "platt"}, "w.calibration: numbers have none; leave it out"),
        ({"calibration": "plat"}, "w.calibration: unknown 'plat'; did you mean 'platt'? known: best, isotonic, platt, temperature"),
        ({"rule": "meen"}, "w.rule: unknown 'meen'; did you mean 'mean'? known: adaptive, gate, log-mean, mean, stacking, voting, weighted"),
    ],
)  # fmt: skip
def test_what_makes_no_fusion_is_refused(keys: dict[str, Any], message: str, flat: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Fuse(id="f", **({"members": MEMBERS, "gives": "probabilities"} | keys)).check(flat, "w")
    assert str(caught.value) == message


def test_classes_in_another_order_are_refused(flat: Task) -> None:
    x = np.random.default_rng(0).random((20, 64))
    other = GaussianNB().fit(x, np.array(["b", "a"] * 10))
    binary = dataclasses.replace(flat, classes=("b", "a"), models={"one": other, "two": other})
    with pytest.raises(RecipeError) as caught:
        Fuse(id="f", members=("one", "two"), gives="probabilities").check(binary, "w")
    assert str(caught.value) == (
        "w: member 'one' has the classes ['a', 'b'], in this order, those of the task are ['b', 'a']: fit it on the same labels"
    ).replace("order, those", "order; those")


class Odd(nn.Module):
    """Logits of another width, the same for all samples, or NaN."""

    def __init__(self, width: int, fill: float | None) -> None:
        super().__init__()
        self.layer, self.fill = nn.Linear(64, width), fill

    def forward(self, x: Any) -> Any:
        made = self.layer(x.flatten(1))
        return made if self.fill is None else made * 0 + self.fill


class TwoOutputs(Odd):
    def __init__(self) -> None:
        super().__init__(10, None)

    def forward(self, x: Any) -> Any:
        return super().forward(x), x.flatten(1).sum(1)


class FiveClasses(Odd):
    def __init__(self) -> None:
        super().__init__(5, None)


class Constant(Odd):
    def __init__(self) -> None:
        super().__init__(10, 1.0)


@pytest.mark.parametrize(
    ("other", "gives", "message"),
    [
        (FiveClasses, "logits", "stages[0] 'stage': members differ in their number of classes: original 10, other 5"),
        (
            Constant,
            "logits",
            "stages[0] 'stage': member 'other' gives the same output for all 360 validation samples; it has learnt nothing, "
            "or reads another kind of input: leave it out",
        ),
    ],
)
def test_members_that_do_not_fit_are_refused(
    other: Any, gives: str, message: str, original: Candidate, exported: Graph, task: Task, tmp_path: Path
) -> None:
    odd = Candidate(factory=other, example=original.example, edits=(), weights=state_of(other()))
    context = make_context(task, tmp_path, {"original": exported, "other": odd})
    with pytest.raises(DataError) as caught:
        Fuse(id="f", members=("original", "other"), gives=gives).run(None, context)
    assert str(caught.value) == message


def test_logits_are_no_probabilities(exported: Graph, task: Task, tmp_path: Path) -> None:
    context = make_context(task, tmp_path, {"a": exported, "b": exported})
    with pytest.raises(DataError) as caught:
        Fuse(id="f", members=("a", "b"), gives="probabilities").run(None, context)
    text = str(caught.value)
    assert text.startswith(
        "stages[0] 'stage'.gives: 'a' is said to give probabilities, but its rows are none: they go "
    )
    assert text.endswith("say 'logits' if a softmax makes probabilities of them")


def nan_file(folder: Path) -> Graph:
    """A file that divides zero by zero."""
    node = onnx.helper.make_node("Sub", ["pixels", "pixels"], ["zero"])
    cut = onnx.helper.make_node("Gather", ["zero", "columns"], ["few"], axis=1)
    division = onnx.helper.make_node("Div", ["few", "few"], ["probabilities"])
    columns = onnx.numpy_helper.from_array(np.arange(10), "columns")
    graph = onnx.helper.make_graph(
        [node, cut, division],
        "nan",
        [onnx.helper.make_tensor_value_info("pixels", 1, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("probabilities", 1, ["batch", 10])],
        [columns],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx_file.save(model, folder / "nan.onnx")
    return Graph(path=folder / "nan.onnx", digest="")


def test_a_member_that_gives_nan_and_one_of_another_shape_are_refused(flat: Task, tmp_path: Path) -> None:
    named = graphs(flat, tmp_path / "g") | {"broken": nan_file(tmp_path)}
    context = make_context(flat, tmp_path / "w", named)
    with pytest.raises(DataError) as caught:
        Fuse(id="f", members=("linear", "broken"), gives="probabilities").run(None, context)
    assert str(caught.value) == (
        "stages[0] 'stage': member 'broken' gives NaN or infinity for 360 of 360 validation samples; check its weights and "
        "how its input is prepared, or leave it out"
    )
    narrow = dataclasses.replace(
        flat, **{part: ArraySplit({"pixels": getattr(flat, part).inputs["pixels"][:, :60]}, getattr(flat, part).labels) for part in ("train", "validation", "test")}
    )  # fmt: skip
    context = make_context(narrow, tmp_path / "w", named)
    with pytest.raises(ArtifactError) as refused:
        Fuse(id="f", members=("linear", "bayes"), gives="probabilities").run(None, context)
    assert str(refused.value) == (
        "member 'linear' takes pixels float32 (batch, 64), but the task feeds pixels float32 (batch, 60); all members of one "
        "graph read the same inputs, with an open batch axis"
    )


def test_a_fold_without_a_class_is_refused(flat: Task, tmp_path: Path) -> None:
    split = flat.split("validation", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    rare = np.flatnonzero(split.labels == 3)[2:]
    kept = np.setdiff1d(np.arange(len(split)), rare)
    inputs, labels = split.batch(kept)
    task = dataclasses.replace(flat, validation=ArraySplit(inputs, labels))
    with pytest.raises(DataError) as caught:
        fused(task, tmp_path, rule="stacking")
    assert str(caught.value) == (
        "stages[0] 'stage'.folds: validation: class 3 has 2 sample(s) for 5 folds: one would be without it; set folds to 2, or "
        "give the class more samples"
    )


def lacking(flat: Task, absent: int) -> Task:
    split = flat.split("validation", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    return dataclasses.replace(flat, validation=ArraySplit(*split.batch(np.flatnonzero(split.labels != absent))))


@pytest.mark.parametrize("keys", [{"rule": "stacking"}, {"calibration": "platt"}, {"calibration": "best"}], ids=str)
@pytest.mark.parametrize("absent", [3, 9])
def test_of_a_class_that_validation_lacks_nothing_is_learnt(
    absent: int, keys: dict[str, str], flat: Task, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        fused(lacking(flat, absent), tmp_path, **keys)
    assert str(caught.value) == (
        f"stages[0] 'stage'.folds: validation: class {absent} has 0 sample(s) for 5 folds: one would be without it; give the "
        "class more samples"
    )


def test_of_a_single_class_nothing_is_stacked(flat: Task, tmp_path: Path) -> None:
    """scikit-learn's own error would speak of its solver."""
    split = flat.split("validation", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    only = dataclasses.replace(flat, validation=ArraySplit(*split.batch(np.flatnonzero(split.labels == 3))))
    with pytest.raises(DataError) as caught:
        fused(only, tmp_path, rule="stacking")
    assert str(caught.value) == (
        "stages[0] 'stage'.folds: validation: class 0 has 0 sample(s) for 5 folds: one would be without it; give the class "
        "more samples"
    )


@pytest.mark.parametrize("keys", [{"rule": "weighted"}, {"rule": "gate"}, {"calibration": "temperature"}], ids=str)
def test_what_learns_nothing_of_single_classes_needs_no_sample_of_each(
    keys: dict[str, str], flat: Task, tmp_path: Path
) -> None:
    graph, _ = fused(lacking(flat, 9), tmp_path, **keys)
    assert measured(graph.path, flat) > 0.8


def test_a_module_has_a_name_for_all_that_it_returns(
    original: Candidate, exported: Graph, task: Task, tmp_path: Path
) -> None:
    """The exporter's error speaks of operations that it does not know."""
    odd = Candidate(factory=TwoOutputs, example=original.example, edits=(), weights=state_of(TwoOutputs()))
    context = make_context(task, tmp_path, {"original": exported, "odd": odd})
    with pytest.raises(RecipeError) as caught:
        Combine(id="c", heads={"original": ("logits",), "odd": ("sum",)}).run(None, context)
    assert str(caught.value) == (
        "stages[0] 'stage': member 'odd': the model returns 2 value(s) (Tensor, Tensor), but the task names the outputs "
        "['sum']; name all that it returns, in order"
    )
    together = Combine(id="c", heads={"original": ("logits",), "odd": ("more", "sum")}).run(None, context)
    assert [value.name for value in onnx.load(together.path).graph.output] == ["logits", "more", "sum"]


def test_a_file_that_is_int8_already_is_no_member(exported: Graph, task: Task, tmp_path: Path) -> None:
    """Its pairs would stay what they are, in one dialect for all targets, beside those that `quantize` writes."""
    feed, _ = task.split("validation", "t").batch(np.arange(16))
    path = tmp_path / "int8.onnx"
    onnx_file.save(quantized(onnx_file.load(exported.path), feed, U8), path)
    context = make_context(task, tmp_path / "w", {"a": exported, "b": Graph(path=path, digest="")})
    for stage in (
        Fuse(id="f", members=("a", "b"), gives="logits"),
        Combine(id="f", heads={"a": ("logits",), "b": ("more",)}),
    ):
        with pytest.raises(RecipeError) as caught:
            stage.run(None, context)
        assert str(caught.value).startswith("stages[0] 'stage'.members: 'b' is INT8 already (")
        assert str(caught.value).endswith(
            "); give the float model it was made from, and quantize what comes out instead"
        )


def test_a_file_that_names_the_tasks_classes_has_their_order(flat: Task, tmp_path: Path) -> None:
    """As one that scikit-learn's converter wrote does."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    split = flat.split("train", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    model = LogisticRegression(max_iter=200).fit(split.inputs["pixels"][:300], np.array(names)[split.labels[:300]])
    task = dataclasses.replace(flat, classes=names, models={"linear": model, "again": model})
    context = make_context(task, tmp_path / "w", graphs(task, tmp_path / "g"))
    with pytest.raises(RecipeError) as caught:
        Fuse(id="f", members=("linear", "again"), gives="probabilities").run(None, context)
    assert str(caught.value) == (
        f"stages[0] 'stage': member 'linear' has the classes {sorted(names)}, in this order; those of the task are "
        f"{list(names)}: write it again, from a model of the same labels"
    )


@pytest.mark.parametrize("keys", [{"rule": "weighted"}, {"rule": "stacking"}, {"calibration": "temperature"}], ids=str)
def test_without_what_members_learnt_from_the_ledger_says_what_is_not_known(
    keys: dict[str, str], flat: Task, tmp_path: Path
) -> None:
    note = (
        "not checked: whether members learnt from the validation samples, as the task has no 'train' split to compare with; "
        "if they did, the figures above flatter them, and the test data will say so"
    )
    _, context = fused(dataclasses.replace(flat, train=None), tmp_path / "without", **keys)
    assert note in context.notes
    _, context = fused(flat, tmp_path / "with", **keys)
    assert note not in context.notes


def test_a_task_of_several_outputs_is_refused(flat: Task) -> None:
    task = dataclasses.replace(flat, outputs=("probabilities", "width"))
    with pytest.raises(RecipeError) as caught:
        Fuse(id="f", members=MEMBERS, gives="probabilities").check(task, "w")
    assert str(caught.value) == (
        "w: the task has the outputs probabilities, width, and what is fused is one; name that alone in the task's outputs "
        "(several go side by side through 'combine')"
    )


@pytest.mark.parametrize(
    ("estimator", "problem"),
    [
        (
            RidgeClassifier(),
            "a RidgeClassifier gives no probabilities (it has no predict_proba); wrap it in a CalibratedClassifierCV, fitted "
            "on the 'train' split",
        ),
        (
            LinearSVC(),
            "a LinearSVC gives no probabilities (it has no predict_proba); wrap it in a CalibratedClassifierCV, fitted on the "
            "'train' split",
        ),
        (
            RandomForestClassifier(2, max_depth=2),
            "this RandomForestClassifier classifies 2 things at once; fit one for each of them",
        ),
        (GaussianNB(), "the estimator is not fitted; fit it in the task, on the 'train' split"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_estimators_that_give_no_probabilities_are_refused(estimator: Any, problem: str, flat: Task) -> None:
    split = flat.split("train", "t")
    assert isinstance(split, ArraySplit) and split.labels is not None
    x, y = split.inputs["pixels"][:200], split.labels[:200]
    if not isinstance(estimator, GaussianNB):
        estimator.fit(x, np.stack([y, y % 2], 1) if isinstance(estimator, RandomForestClassifier) else y)
    task = dataclasses.replace(flat, models={**flat.models, "odd": estimator})
    with pytest.raises(TaskError) as caught:
        Fuse(id="f", members=("linear", "odd"), gives="probabilities").check(task, "w")
    assert str(caught.value) == f"w: member 'odd': {problem}"


def test_what_is_constant_is_measured_by_its_size() -> None:
    rng = np.random.default_rng(0)
    rows = member_rows("small", 1e-10 * rng.random((50, 1)), "numbers", "w")
    assert rows.shape == (50, 1)
    masked = np.stack([np.full(50, -1e9), rng.normal(size=50), rng.normal(size=50)], 1)
    member_rows("masked", masked, "logits", "w")
    with pytest.raises(DataError) as caught:
        member_rows("rounded", 5 + 1e-7 * rng.random((50, 1)), "numbers", "w")
    assert str(caught.value).startswith("w: member 'rounded' gives the same output for all 50 validation samples")


def test_labels_that_exclude_each_other_are_no_logits() -> None:
    rng = np.random.default_rng(0)
    check_unit("regression", np.append(rng.random(500), 2.4)[:, None], "w")
    with pytest.raises(DataError) as caught:
        check_unit("net", np.linspace(-6, 4, 101)[:, None], "w")
    assert str(caught.value) == (
        "w.exclusive: 98 % of what member 'net' gives lie between -5.9 and 3.9, and labels that exclude each other are "
        "numbers between 0 and 1; let it give probabilities (a sigmoid of its logits)"
    )


def test_a_file_of_nan_is_not_what_was_judged(flat: Task, tmp_path: Path) -> None:
    graph, context = fused(flat, tmp_path)
    with pytest.raises(ContractError, match="the fused graph differs from its parts by up to nan"):
        check_computes(graph.path, Unchanged(), np.full((360, 10), np.nan), context)


def test_what_members_were_trained_on_teaches_no_fusion(flat: Task) -> None:
    train, validation = flat.split("train", "t"), flat.split("validation", "t")
    parts: Any = [train.batch(np.arange(5)), validation.batch(np.arange(5, 360))]
    images = np.concatenate([inputs["pixels"] for inputs, _ in parts])
    task = dataclasses.replace(flat, validation=ArraySplit({"pixels": images}, np.concatenate([y for _, y in parts])))
    mean: dict[str, Any] = {"id": "f", "members": MEMBERS, "gives": "probabilities"}
    Fuse(**mean).check(task, "w")  # which learns nothing
    for keys in ({"rule": "stacking"}, {"select": True}, {"calibration": "platt"}):
        with pytest.raises(DataError) as caught:
            Fuse(**mean | keys).check(task, "w")
        assert str(caught.value) == (
            "w: 5 of 360 validation samples are in the 'train' split too (first: number 0); a fusion would be learnt on data "
            "that members were trained on, where they are too good: take them out of one of the two"
        )


def test_a_pickle_is_not_opened(flat: Task) -> None:
    with pytest.raises(TaskError) as caught:
        graph_of("forest.pkl", flat, "forest")
    assert str(caught.value) == (
        "task 'flat': forest model: 'forest.pkl' is a pickle, which runs whatever code it holds when it is opened, so none is "
        "opened; give the fitted estimator itself in the task, or an ONNX file"
    )


def test_an_estimator_that_is_not_fitted_is_refused(flat: Task) -> None:
    with pytest.raises(TaskError) as caught:
        graph_of(GaussianNB(), flat, "bayes")
    assert str(caught.value) == (
        "task 'flat': bayes model: the estimator is not fitted; fit it in the task, on the 'train' split"
    )
