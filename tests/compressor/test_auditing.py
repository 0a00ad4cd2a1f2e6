"""What of a task can be corrupted, disturbed or occluded; and a fault that typing errors alone bring out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import edgesmith
from edgesmith.benches.audits.audit import SEVERITIES
from edgesmith.compressor import auditing
from edgesmith.compressor.auditing import Pair, corruption_losses, flip_rates, map_agreement
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.run_directory import RunDirectory
from edgesmith.core.errors import DataError, TaskError
from edgesmith.core.task import Task
from edgesmith.exporters.graph.artifact_file import describe_file
from tests.benches.models import write

GOOD, BAD = ("lovely", "wonderful", "splendid", "charming"), ("awful", "terrible", "boring", "dreadful")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """How often each letter is in a text, float32 `(N, 26)`."""
    return {"counts": np.array([[text.count(letter) for letter in LETTERS] for text in texts], np.float32)}


def texts_and_labels(count: int = 200) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    return [" ".join(rng.choice(GOOD if label else BAD, 6)) for label in labels], labels


def text_task(**changes: Any) -> Task:
    texts, labels = texts_and_labels()
    test = edgesmith.ArraySplit(letters(texts), labels)
    given = {"texts": texts, "encode": letters, "outputs": ("logits",), **changes}
    return edgesmith.Task(name="reviews", model="unused.onnx", test=test, **given)


def image_task(shape: tuple[int, ...] = (3, 8, 8), dtype: type = np.float32) -> Task:
    images = np.random.default_rng(0).random((20, *shape)).astype(dtype)
    return edgesmith.Task(
        name="t", model="unused.onnx", test=edgesmith.ArraySplit({"image": images}, np.arange(20) % 2),
        outputs=("logits",),
    )  # fmt: skip


def linear(path: Path, weights: np.ndarray, fewest: float | None = None, fault: float = -1.0) -> Path:
    """Logits of letter counts; with `fewest` those of a text of fewer letters are divided by `fault`."""
    nodes = [helper.make_node("MatMul", ["counts", "w"], ["logits" if fewest is None else "inner"])]
    held = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    if fewest is not None:
        held += [numpy_helper.from_array(np.float32(fewest), "few"), numpy_helper.from_array(np.array([1]), "axes")]
        held.append(numpy_helper.from_array(np.float32(fault), "fault"))
        nodes += [
            helper.make_node("ReduceSum", ["counts", "axes"], ["length"]),
            helper.make_node("Less", ["length", "few"], ["short"]),
            helper.make_node("Div", ["inner", "fault"], ["opposite"]),
            helper.make_node("Where", ["short", "opposite", "inner"], ["logits"]),
        ]
    inputs: dict[str, tuple[int, list[int | str]]] = {"counts": (onnx.TensorProto.FLOAT, ["batch", 26])}
    return write(path, nodes, held, inputs, {"logits": ["batch", 2]})


def weights() -> np.ndarray:
    """Least squares on the texts themselves; right on all of them."""
    texts, labels = texts_and_labels()
    found = np.linalg.lstsq(letters(texts)["counts"], 2.0 * labels - 1, rcond=None)[0]
    return np.stack([-found, found], 1)


def pair(task: Task, original: Path, final: Path) -> Pair:
    described = (describe_file(path, "onnxruntime-cpu") for path in (original, final))
    first, second = described
    return Pair(original=first, final=second, task=task, identity="t", threads=1, machine={})


def test_a_file_that_loses_texts_with_missing_letters(tmp_path: Path) -> None:
    fewest = min(len(text.replace(" ", "")) for text in texts_and_labels()[0])
    task = text_task()
    both = pair(task, linear(tmp_path / "a.onnx", weights()), linear(tmp_path / "b.onnx", weights(), fewest))
    losses = corruption_losses(both, RunDirectory(tmp_path).once, 0.95, Progress())
    lost = {each.name: each.drop.value for each in losses if each.drop is not None}
    assert set(lost) == {
        f"{name} {s}" for name in ("swapped-letters", "missing-letters", "wrong-letters") for s in SEVERITIES
    }
    assert lost["missing-letters 5"] > 0.02
    assert {name for name, value in lost.items() if value} <= {f"missing-letters {s}" for s in SEVERITIES}
    assert all(each.original == 1.0 for each in losses if each.name.startswith("swapped")), (
        "letters are counted, not read"
    )


def test_an_output_that_is_not_finite_names_the_corruption(tmp_path: Path) -> None:
    fewest = min(len(text.replace(" ", "")) for text in texts_and_labels()[0])
    broken = linear(tmp_path / "b.onnx", weights(), fewest, 0.0)
    both = pair(text_task(), linear(tmp_path / "a.onnx", weights()), broken)
    with pytest.raises(DataError) as caught:
        corruption_losses(both, RunDirectory(tmp_path).once, 0.95, Progress())
    assert "final model under missing-letters " in str(caught.value)
    assert "the model's output is NaN or infinite for " in str(caught.value)


def test_small_noise_and_maps_of_a_table(tmp_path: Path) -> None:
    steady = weights()
    files = linear(tmp_path / "a.onnx", steady), linear(tmp_path / "b.onnx", steady)
    both, once = pair(text_task(), *files), RunDirectory(tmp_path).once
    same = flip_rates(both, once, 0.95)
    assert same.original == same.final and same.more.value == 0 and same.samples == 200
    task = text_task()
    clean = letters(texts_and_labels()[0])["counts"] @ steady
    found = map_agreement(pair(task, *files), once, clean, 0.95)
    assert found is not None and found.features == 26 and found.correlation.value == pytest.approx(1)
    other = np.roll(steady, 5, axis=0)
    changed = pair(task, files[0], linear(tmp_path / "c.onnx", other))
    found = map_agreement(changed, once, clean, 0.95)
    assert found is not None and found.correlation.high < 0.8
    noisy = flip_rates(changed, once, 0.95)
    assert noisy.original == same.original and noisy.final > noisy.original, "a margin of nothing flips"


def test_what_can_be_corrupted() -> None:
    assert auditing.no_corruptions(image_task()) == auditing.no_corruptions(text_task()) == ""
    assert set(auditing.changes(image_task())) >= {"gaussian-noise", "gaussian-blur", "contrast", "brightness"}
    why = (
        "no input holds images (float, four axes, two of them at least 4 long), and the task has no texts; for typing "
        "errors set texts= and encode= in the task"
    )
    for task in (image_task((26,)), image_task((3, 8, 8), np.int64), image_task((3, 2, 8)), text_task(texts=())):
        assert auditing.no_corruptions(task) == why
    assert auditing.image_inputs(image_task((8, 8, 3))) == ("image",), "channels may stand last"


def test_severity_0_is_the_test_split() -> None:
    for task in (image_task(), image_task((8, 8, 3)), text_task()):
        indices = np.array([3, 7])
        for change in auditing.changes(task).values():
            for name, array in task.test.batch(indices)[0].items():
                np.testing.assert_array_equal(change(indices, 0)[name], array)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encode": None}, "set encode= too, what makes inputs of them (TextEncoder.encode)"),
        ({"texts": ["a"]}, "1 of them for 200 test samples; give one for each"),
        (
            {"texts": texts_and_labels()[0][::-1]},
            "encode(texts) does not give input 'counts' of the test split; give its texts in its order",
        ),
    ],
)
def test_texts_that_are_not_those_of_the_test_split(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        auditing.check_texts(text_task(**changes))
    assert str(caught.value) == f"task 'reviews': texts: {said}"


def test_why_flips_and_maps_are_not_measured(tmp_path: Path) -> None:
    both = pair(image_task((4,), np.int64), *(linear(tmp_path / f"{i}.onnx", weights()) for i in range(2)))
    outputs, labels = {"logits": np.zeros((20, 2), np.float32)}, np.arange(20) % 2
    assert auditing.no_flips(both, outputs, labels) == (
        "no input is float, and noise in token ids or categories is not small"
    )
    assert auditing.no_maps(both, outputs, labels) == (
        "no input holds images or columns of numbers, which is what is occluded"
    )
    images = pair(image_task(), both.original.path, both.final.path)
    for why in (auditing.no_flips, auditing.no_maps):
        assert why(images, outputs, labels) == ""
        assert why(images, outputs, labels.astype(np.float32)) == "output 'logits' is not one score per class"
