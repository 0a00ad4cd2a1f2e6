"""Members whose columns stand for the task's classes in another order are found by what they answer."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.fusion.fuse_checks import check_order
from edgesmith.compressor.stage import Graph
from edgesmith.core.errors import DataError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph import onnx_file

from ..conftest import make_context
from .digits_members import flat_task, graphs, measured


@pytest.fixture(scope="module")
def flat(task: Task) -> Task:
    return flat_task(task)


def test_columns_in_another_order_are_found_by_the_answers(flat: Task, tmp_path: Path) -> None:
    """As of a torch member or a file, which does not say what its columns are."""
    named = graphs(flat, tmp_path / "g")
    model = onnx_file.load(tmp_path / "g" / "linear.onnx")
    order = np.roll(np.arange(10), 1)  # its first column is the task's last class
    model.graph.node[-1].output[0] = "straight"
    model.graph.initializer.append(onnx.numpy_helper.from_array(order, "order"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["straight", "order"], ["probabilities"], axis=1))
    onnx_file.save(model, tmp_path / "turned.onnx")
    named["turned"] = Graph(path=tmp_path / "turned.onnx", digest="")
    right = round(360 * measured(tmp_path / "g" / "linear.onnx", flat))
    wrong = round(360 * measured(tmp_path / "turned.onnx", flat))
    with pytest.raises(DataError) as caught:
        Fuse(id="f", members=("bayes", "turned"), gives="probabilities").run(
            None, make_context(flat, tmp_path / "w", named)
        )
    assert str(caught.value) == (
        f"stages[0] 'stage': member 'turned' is right for {wrong} of 360 validation samples, but would be for {right} if its "
        "columns stood for 9, 0, 1, 2, 3, 4, 5, 6, 7, 8: it has the classes in another order than the task"
    )


@pytest.mark.parametrize("share", [0.95, 0.7])
def test_two_classes_that_changed_places_are_found(share: float) -> None:
    """Of ten, where no more than a fifth of the samples is of them; and not where a member takes one for the other."""
    rng, labels = np.random.default_rng(0), np.arange(500) % 10
    said = np.where(rng.random(500) < share, labels, rng.integers(0, 10, 500))
    rows = 0.5 * np.eye(10)[said] + 0.05
    task = Task(name="t", model="m.onnx", test=ArraySplit({"x": rows.astype(np.float32)}, labels), outputs=("y",))
    check_order("right", rows, labels, task, "w")
    with pytest.raises(DataError, match=r"if its columns stood for 0, 1, 2, 4, 3, 5, 6, 7, 8, 9: it has the classes"):
        check_order("swapped", rows[:, [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]], labels, task, "w")
    pair = np.isin(labels, (3, 4))
    half = np.where(pair & (rng.random(500) < 0.6), 7 - labels, labels)
    check_order("unsure", 0.5 * np.eye(10)[half] + 0.05, labels, task, "w")


def test_a_member_that_is_too_fond_of_one_class_has_them_in_order() -> None:
    """One in twenty is positive, it calls most positive, and it ranks them nearly all right: for a fusion to mend."""
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.05).astype(np.int64)
    positive = 1 / (1 + np.exp(-(1.0 + 2.5 * labels + rng.normal(size=2000))))
    rows = np.stack([1 - positive, positive], 1)
    assert (rows.argmax(1) == labels).mean() < 0.3
    task = Task(name="t", model="m.onnx", test=ArraySplit({"x": rows.astype(np.float32)}, labels), outputs=("y",))
    check_order("fond", rows, labels, task, "w")
    with pytest.raises(
        DataError, match=r"^w: member 'turned' is right for .* if its columns stood for 1, 0: it has the"
    ):
        check_order("turned", np.eye(2)[labels][:, ::-1] * 0.8 + 0.1, labels, task, "w")
    check_order("few", np.eye(2)[labels][:3, ::-1] * 0.8 + 0.1, np.array([0, 1, 0]), task, "w")


@pytest.mark.parametrize(("classes", "each"), [(10, 5), (20, 5), (100, 5), (10, 10)])
def test_a_member_that_cannot_tell_two_classes_apart_is_let_through(classes: int, each: int) -> None:
    """Of few samples a pair looks swapped by chance, and of many pairs some do."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(classes), each)
    task = Task(
        name="t", model="m.onnx", test=ArraySplit({"x": np.zeros((1, 1), np.float32)}, labels[:1]), outputs=("y",)
    )
    for _ in range(200):
        said = np.where((labels < 2) & (rng.random(len(labels)) < 0.5), 1 - labels, labels)
        check_order("unsure", 0.5 * np.eye(classes)[said] + 0.05, labels, task, "w")
